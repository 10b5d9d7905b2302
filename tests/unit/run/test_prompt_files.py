"""Prompt files are read as upstream reads them, and what is wrong with one is named with its row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from opt_trt.errors import UserError
from opt_trt.run.prompt_files import PromptRules, is_text, read_ids, read_texts

RULES = PromptRules(vocab_size=100, pad_id=1)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def npy(path: Path, array: np.ndarray, allow_pickle: bool = False) -> Path:
    np.save(path, array, allow_pickle=allow_pickle)
    return path


def test_a_line_is_a_prompt_without_its_line_break(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path / "p.txt", "one\n\ntwo \r\nthree")) == ["one", "", "two ", "three"]


def test_only_line_breaks_end_a_prompt(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path / "p.txt", "a\u2028b\x0cc\n")) == ["a\u2028b\x0cc"]


def test_csv_may_have_spaces_and_rows_of_any_length(tmp_path: Path) -> None:
    assert read_ids(write(tmp_path / "p.csv", "2,5, 6,7\n2\n"), RULES) == [(2, 5, 6, 7), (2,)]


def test_csv_keeps_pad_ids(tmp_path: Path) -> None:
    assert read_ids(write(tmp_path / "p.csv", "1,5"), RULES) == [(1, 5)]


def test_csv_of_a_spreadsheet_may_begin_with_its_mark(tmp_path: Path) -> None:
    assert read_ids(write(tmp_path / "p.csv", b"\xef\xbb\xbf2,5\r\n"), RULES) == [(2, 5)]


def test_npy_drops_pad_ids(tmp_path: Path) -> None:
    array = np.array([[1, 1, 2, 5, 1], [2, 4, 5, 6, 7]], dtype=np.int32)
    assert read_ids(npy(tmp_path / "p.npy", array), RULES) == [(2, 5), (2, 4, 5, 6, 7)]


def test_ids_are_plain_integers(tmp_path: Path) -> None:
    [row] = read_ids(npy(tmp_path / "p.npy", np.array([[2, 5]], dtype=np.uint16)), RULES)
    assert [type(i) for i in row] == [int, int]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"p\.csv has no rows"),
        ("2,5\n2,x7\n", r"p\.csv, row 1: expected integer token ids, found 'x7'"),
        ("2,5.0\n", "row 0: expected integer token ids, found '5.0'"),
        ("2,5,\n", "row 0: expected integer token ids, found ''"),
        ("2\n\n3\n", "row 1: expected token ids, found none"),
        ("2\n5,100\n", "row 1: token id 100 is outside the vocabulary of the engine, 0 to 99"),
        ("-1", "row 0: token id -1 is outside"),
        ("9" * 5000, "expected integer token ids"),
        (b"\xff\xfe2", "is not comma-separated text"),
        (b'"' + b"2" * 200_000, "is not comma-separated text"),
    ],
)
def test_what_is_wrong_in_a_csv_is_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_ids(write(tmp_path / "p.csv", text), RULES)


def ragged(path: Path) -> Path:
    rows = np.empty(2, dtype=object)
    rows[:] = [[2], [2, 3]]
    return npy(path, rows, allow_pickle=True)


def truncated(path: Path) -> Path:
    npy(path, np.ones((4, 100), dtype=np.int64))
    return write(path, path.read_bytes()[:-8])


def huge(path: Path) -> Path:
    npy(path, np.ones((1, 10), dtype=np.int64))
    return write(path, path.read_bytes().replace(b"(1, 10), }", b"(9999999999, 9999999999), }"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (ragged, r"p\.npy is not a whole \.npy array.*ragged"),
        (truncated, "is not a whole"),
        (huge, "is not a whole"),
        (lambda p: write(p, ""), "is not a whole"),
        (lambda p: write(p, "2,3"), "is not a whole"),
        (lambda p: npy(p, np.array([2, 3])), r"expected integers of shape \[prompts, tokens\], found int64 of \(2,\)"),
        (lambda p: npy(p, np.array([[2.0]])), "found float64"),
        (lambda p: npy(p, np.array([["2"]])), "found <U1"),
        (lambda p: npy(p, np.ones((0, 4), dtype=np.int32)), "has no rows"),
        (lambda p: npy(p, np.array([[2, 3], [1, 1]])), "row 1: expected token ids, found none"),
        (lambda p: npy(p, np.array([[2, 2**63]], dtype=np.uint64)), "token id 9223372036854775808 is outside"),
    ],
)
def test_what_is_wrong_in_an_npy_is_named(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_ids(make(tmp_path / "p.npy"), RULES)


def test_an_empty_text_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.txt is empty"):
        read_texts(write(tmp_path / "p.txt", ""))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_texts(write(tmp_path / "p.txt", b"caf\xe9"))


@pytest.mark.parametrize("name", ["p.json", "p", "p.npz"])
def test_another_suffix_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"--input_file takes \.txt.*\.csv or \.npy.*{name}"):
        is_text(write(tmp_path / name, "2"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a prompt file at .*p\.txt"):
        is_text(tmp_path / "p.txt")
