"""Read prompts as token ids: from text, or from .txt, .csv and .npy files."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opt_trt.errors import UserError, reason
from opt_trt.host.files import check_regular, is_pipe, open_regular, read_text

Ids = tuple[int, ...]
LINE_LIMIT = 1 << 20  # characters of a row of token ids
NPY_LIMIT = 128 << 20  # bytes of an array of token ids
MOST_ROWS = 1 << 20  # prompts of an array
INTEGER = re.compile(r"\s*-?[0-9]{1,18}\s*")


@dataclass(frozen=True)
class PromptRules:
    """The rules by which prompts are checked."""

    vocab_size: int
    pad_id: int  # removed from the rows of .npy files


def read_texts(path: Path) -> list[str]:
    """Read a prompt per line of a UTF-8 text file, without line breaks; an empty line is an empty prompt."""
    try:
        lines = io.StringIO(read_text(path, "utf-8-sig"), newline=None).read().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    if lines[-1] == "":
        lines.pop()  # the end of the last line
    if not lines:
        raise UserError(f"{path} is empty; expected a prompt per line")
    return lines


def read_ids(path: Path, rules: PromptRules) -> list[Ids]:
    """Read a prompt per row of token ids in a .csv or .npy file; errors name the row, counted from 0."""
    rows = [_checked(row, number, path, rules) for number, row in enumerate(ID_READERS[path.suffix](path, rules))]
    if not rows:
        raise UserError(f"{path} has no rows; expected a row of token ids per prompt")
    return rows


def _checked(row: Ids, number: int, path: Path, rules: PromptRules) -> Ids:
    """Return a row; refuse an empty row and ids outside the vocabulary."""
    if not row:
        raise UserError(f"{path}, row {number}: expected token ids, found none")
    bad = next((i for i in row if not 0 <= i < rules.vocab_size), None)
    if bad is not None:
        raise UserError(
            f"{path}, row {number}: token id {bad} is outside the vocabulary of the engine, "
            f"0 to {rules.vocab_size - 1}; use the tokenizer of the model"
        )
    return row


def is_text(path: Path) -> bool:
    """Return whether a prompt file needs a tokenizer; refuse an unknown suffix. A pipe of the shell holds text."""
    if is_pipe(path):
        return True
    check_regular(path)
    if not path.is_file():
        raise UserError(f"expected a prompt file at {path}, found none; check --input_file")
    if path.suffix != ".txt" and path.suffix not in ID_READERS:
        raise UserError(
            f"--input_file takes .txt (a prompt per line), .csv or .npy (a row of token ids per prompt), found {path}"
        )
    return path.suffix == ".txt"


def _read_csv(path: Path, rules: PromptRules) -> Iterator[Ids]:
    try:
        lines = list(io.StringIO(read_text(path, "utf-8-sig"), newline=""))
        if any(len(line) > LINE_LIMIT for line in lines):
            raise UserError(f"{path} has a row of more than {LINE_LIMIT} characters; no prompt is as long")
        yield from (_parse_row(row, path, number) for number, row in enumerate(csv.reader(lines)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not comma-separated text ({error})") from None


def _parse_row(row: Sequence[str], path: Path, number: int) -> Ids:
    bad = next((cell for cell in row if not INTEGER.fullmatch(cell)), None)
    if bad is not None:
        raise UserError(f"{path}, row {number}: expected integer token ids, found {bad[:40]!r}")
    return tuple(map(int, row))


def _read_npy(path: Path, rules: PromptRules) -> Iterator[Ids]:
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > NPY_LIMIT:
                raise ValueError(f"more than {NPY_LIMIT >> 20} MiB")
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (UserError, OSError):
        raise
    except Exception as error:  # a damaged header can fail in any way
        raise UserError(
            f"{path} is not a whole .npy array of integers ({reason(error)}); "
            f"pad ragged rows with the pad id {rules.pad_id} and save them again"
        ) from None
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UserError(f"{path}: expected integers of shape [prompts, tokens], found {array.dtype} of {array.shape}")
    if len(array) > MOST_ROWS:
        raise UserError(f"{path}: expected up to {MOST_ROWS} prompts, found {len(array)}; split the file")
    yield from (tuple(row[row != rules.pad_id].tolist()) for row in array)


ID_READERS: dict[str, Callable[[Path, PromptRules], Iterator[Ids]]] = {".csv": _read_csv, ".npy": _read_npy}
