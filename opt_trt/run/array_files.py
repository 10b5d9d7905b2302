"""Write arrays of a row per output as .csv and .npy files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from opt_trt.errors import UserError
from opt_trt.host.atomic import replace_file, replace_text


def check_target(path: Path) -> None:
    """Raise `UserError` now rather than after the generation if the file cannot be put there."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a directory; make it, or give another place for {path.name}")


def pad_rows(rows: Sequence[Sequence[float]], fill: float, dtype: type[np.number]) -> np.ndarray:
    """`[rows, longest row]` of a type, short rows filled at the end."""
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def write_csv(path: Path, ids: np.ndarray) -> None:
    """A line of comma-separated integers per row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(ids.tolist())
    replace_text(path, text.getvalue())


def write_npy(path: Path, values: np.ndarray) -> None:
    """numpy's format; the name is kept as given."""
    replace_file(path, lambda file: np.save(file, values, allow_pickle=False))


def write_npy_parts(path: Path, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """The same of fp32 values whose parts, one after another, make up `shape`: they are never in memory as a whole."""

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype="<f4").data)

    replace_file(path, write)
