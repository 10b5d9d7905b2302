"""The form that `torch.save` wrote before torch 1.6: five pickles, then the numbers of all storages in turn."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from opt_trt.errors import UserError
from opt_trt.sources.safe_pickle import PICKLE_LIMIT, SafeUnpickler
from opt_trt.sources.stand_ins import Storage

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # the first pickle
SIZE_BYTES = 8  # of the number of elements that stands before those of a storage


def is_legacy(file: BinaryIO) -> bool:
    """Return whether torch before 1.6 wrote this file."""
    file.seek(0)
    return file.read(len(MAGIC)) == MAGIC


def load(path: Path, file: BinaryIO) -> Any:
    """Return the object in the file; any exception may come of a damaged one.

    The places of storages follow from their sizes, which only the pickle knows, so the pickle is read twice.
    """
    file.seek(0)
    pickles = io.BytesIO(file.read(PICKLE_LIMIT))
    storages: dict[str, Storage] = {}

    def note(key: str, dtype: torch.dtype, count: int) -> Storage:
        return storages.setdefault(key, Storage(0, count, dtype))

    def read() -> Any:
        return SafeUnpickler(path, pickles, note).load()

    _, version, system = read(), read(), read()
    if version != 1001 or system["little_endian"] is not True:
        raise UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one")
    start = pickles.tell()
    read()
    storages = _places(file, read(), storages, pickles.tell())
    pickles.seek(start)
    return read()


def _places(file: BinaryIO, keys: Iterable[str], noted: dict[str, Storage], offset: int) -> dict[str, Storage]:
    """Return the storages with their places; `ValueError` if the file does not hold them."""
    places: dict[str, Storage] = {}
    for key in keys:
        file.seek(offset)
        count, storage = int.from_bytes(file.read(SIZE_BYTES), "little"), noted[key]
        if count != storage.size:
            raise ValueError(f"a storage has {count} elements, expected {storage.size}")
        places[key] = storage._replace(offset=offset + SIZE_BYTES)
        offset += SIZE_BYTES + count * storage.dtype.itemsize
    if places.keys() != noted.keys() or offset > os.fstat(file.fileno()).st_size:
        raise ValueError("the file ends before its tensors do")
    return places
