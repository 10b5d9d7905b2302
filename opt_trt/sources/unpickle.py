"""Read the pickle of a file that `torch.save` wrote: an archive, or the older form that torch before 1.6 wrote."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import torch

from opt_trt.errors import UserError, reason
from opt_trt.host.files import open_regular
from opt_trt.sources import torch_legacy, torch_zip
from opt_trt.sources.safe_pickle import PICKLE_LIMIT, SafeUnpickler
from opt_trt.sources.stand_ins import Storage

PICKLE = "data.pkl"


def unpickle(path: Path) -> Any:
    """Return the object that `torch.save` wrote, with `Tensor` for tensors and `Stub` for foreign objects.

    `UserError` for a file that torch did not write, that is damaged, or that names something that could run code.
    """
    with open_regular(path) as file:
        try:
            if torch_zip.is_zip(file):
                return _from_archive(path, file)
            if torch_legacy.is_legacy(file):
                return torch_legacy.load(path, file)
        except (UserError, OSError):
            raise
        except Exception as error:  # a damaged pickle can fail in any way
            raise UserError(
                f"{path} is damaged or was not written by torch.save ({reason(error)}); fetch the file again"
            ) from error
    raise UserError(
        f"{path} was not written by torch.save (a git-lfs pointer, an unfinished download?); fetch it again, or load "
        "it with the program that wrote it and save it with torch.save"
    )


def _from_archive(path: Path, file: BinaryIO) -> Any:
    records = {entry.filename.partition("/")[2]: entry for entry in torch_zip.entries(file)}
    if PICKLE not in records:
        raise UserError(f"{path} is a zip archive that torch.save did not write; fetch the file again")
    if "byteorder" in records and torch_zip.read(file, records["byteorder"], limit=16) != b"little":
        raise UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one")

    def find_storage(key: str, dtype: torch.dtype, count: int) -> Storage:
        record = records[f"data/{key}"]
        if count * dtype.itemsize > record.file_size:
            raise ValueError(f"a storage does not hold {count} elements of {dtype}")
        return Storage(torch_zip.data_offset(file, record), count, dtype)

    pickled = io.BytesIO(torch_zip.read(file, records[PICKLE], PICKLE_LIMIT))
    return SafeUnpickler(path, pickled, find_storage).load()
