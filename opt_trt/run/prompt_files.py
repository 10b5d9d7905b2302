"""Read prompts as token ids: from text, or from .txt, .csv and .npy files."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opt_trt.errors import UserError

Ids = tuple[int, ...]
INTEGER = re.compile(r"\s*-?[0-9]{1,18}\s*")


@dataclass(frozen=True)
class PromptRules:
    """The rules by which prompts are checked."""

    vocab_size: int
    pad_id: int  # removed from the rows of .npy files


def read_texts(path: Path) -> list[str]:
    """Read a prompt per line of a UTF-8 text file, without line breaks; an empty line is an empty prompt."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    if lines[-1] == "":
        lines.pop()  # the end of the last line
    if not lines:
        raise UserError(f"{path} is empty; expected a prompt per line")
    return lines


def read_ids(path: Path, rules: PromptRules) -> list[Ids]:
    """Read a prompt per row of token ids in a .csv or .npy file; errors name the row, counted from 0."""
    rows = ID_READERS[path.suffix](path, rules)
    if not rows:
        raise UserError(f"{path} has no rows; expected a row of token ids per prompt")
    for number, row in enumerate(rows):
        if not row:
            raise UserError(f"{path}, row {number}: expected token ids, found none")
        bad = next((i for i in row if not 0 <= i < rules.vocab_size), None)
        if bad is not None:
            raise UserError(
                f"{path}, row {number}: token id {bad} is outside the vocabulary of the engine, "
                f"0 to {rules.vocab_size - 1}; use the tokenizer of the model"
            )
    return rows


def is_text(path: Path) -> bool:
    """Return whether a prompt file needs a tokenizer; refuse an unknown suffix."""
    if not path.is_file():
        raise UserError(f"expected a prompt file at {path}, found none; check --input_file")
    if path.suffix != ".txt" and path.suffix not in ID_READERS:
        raise UserError(
            f"--input_file takes .txt (a prompt per line), .csv or .npy (a row of token ids per prompt), found {path}"
        )
    return path.suffix == ".txt"


def _read_csv(path: Path, rules: PromptRules) -> list[Ids]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [_parse_row(row, path, number) for number, row in enumerate(csv.reader(file))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not comma-separated text ({error})") from None


def _parse_row(row: Sequence[str], path: Path, number: int) -> Ids:
    bad = next((cell for cell in row if not INTEGER.fullmatch(cell)), None)
    if bad is not None:
        raise UserError(f"{path}, row {number}: expected integer token ids, found {bad[:40]!r}")
    return tuple(map(int, row))


def _read_npy(path: Path, rules: PromptRules) -> list[Ids]:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise UserError(
            f"{path} is not a whole .npy array of integers ({str(error).splitlines()[0]}); "
            f"pad ragged rows with the pad id {rules.pad_id} and save them again"
        ) from None
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UserError(f"{path}: expected integers of shape [prompts, tokens], found {array.dtype} of {array.shape}")
    return [tuple(row[row != rules.pad_id].tolist()) for row in array]


ID_READERS: dict[str, Callable[[Path, PromptRules], list[Ids]]] = {".csv": _read_csv, ".npy": _read_npy}
