"""The records of a file written by `torch.save`: a zip archive that does not compress, so they are read in place."""

from __future__ import annotations

import struct
import zipfile
from contextlib import suppress
from typing import BinaryIO, cast

from opt_trt.errors import UserError, reason

ZIP_START = b"PK\x03\x04"
DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    struct.error,
)  # the errors that zipfile raises for damaged archives
DIRECTORY_LIMIT = 16 << 20  # bytes; each tensor has about 100
LOCAL_HEADER = 30  # bytes before the name of an entry; the last four hold the lengths of the name and an extra field


def is_zip(file: BinaryIO) -> bool:
    """Return whether torch 1.6 or newer wrote this file; older versions do not write an archive."""
    file.seek(0)
    return file.read(len(ZIP_START)) == ZIP_START


class _Directory:
    """A file of which no more than `DIRECTORY_LIMIT` bytes are read at once: its end says how long its directory is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.seek, self.tell, self.seekable = file, file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Return as many bytes; `BadZipFile` for more than the directory of a model has."""
        if size > DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return self._file.read(size if size >= 0 else DIRECTORY_LIMIT)


def entries(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """Return the archive's directory; `UserError` for a truncated or compressed archive."""
    try:
        with zipfile.ZipFile(cast(BinaryIO, _Directory(file))) as archive:
            found = archive.infolist()
    except DAMAGED as error:
        raise UserError(f"{file.name} is truncated or damaged ({reason(error)}); fetch the file again") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in found):
        raise UserError(f"{file.name} was compressed after torch wrote it; unpack it and save it with torch.save again")
    return found


def data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return where the data of an entry begin, in bytes from the start of the file."""
    header = b""
    with suppress(OSError, ValueError):  # a damaged offset, outside the file
        file.seek(entry.header_offset)
        header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or not header.startswith(ZIP_START):
        raise UserError(f"{file.name} is damaged: no record where {entry.filename} should be; fetch the file again")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return entry.header_offset + LOCAL_HEADER + name + extra


def read(file: BinaryIO, entry: zipfile.ZipInfo, limit: int) -> bytes:
    """Return the data of an entry; `UserError` if it has more than `limit` bytes."""
    if entry.file_size > limit:
        raise UserError(f"{file.name}: {entry.filename} has {entry.file_size} bytes, torch.save writes up to {limit}")
    file.seek(data_offset(file, entry))
    return file.read(entry.file_size)
