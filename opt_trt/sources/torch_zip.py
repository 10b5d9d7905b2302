"""The records of a file by `torch.save`: a zip archive that stores them as they are, so that they are read in place."""

from __future__ import annotations

import struct
import zipfile
from contextlib import suppress
from typing import BinaryIO

from opt_trt.errors import UserError

ZIP_START = b"PK\x03\x04"
DAMAGED = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error)  # what zipfile raises of such archives
LOCAL_HEADER = 30  # bytes before the name of an entry; the last four are the lengths of the name and an extra field


def is_zip(file: BinaryIO) -> bool:
    """Whether torch 1.6 or newer wrote this file: what older ones write is no archive."""
    file.seek(0)
    return file.read(len(ZIP_START)) == ZIP_START


def entries(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """The archive's directory; a truncated or compressed archive is named."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except DAMAGED as error:
        raise UserError(f"{file.name} is truncated or damaged ({error}); fetch the file again") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in found):
        raise UserError(f"{file.name} was compressed after torch wrote it; unpack it and save it with torch.save again")
    return found


def data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the data of an entry begin, in bytes from the start of the file."""
    header = b""
    with suppress(OSError, ValueError):  # an offset that no file has
        file.seek(entry.header_offset)
        header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or not header.startswith(ZIP_START):
        raise UserError(f"{file.name} is damaged: no record where {entry.filename} should be; fetch the file again")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return entry.header_offset + LOCAL_HEADER + name + extra
