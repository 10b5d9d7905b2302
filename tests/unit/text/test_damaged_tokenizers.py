"""A damaged tokenizer is named before its first prompt."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from opt_trt.errors import UserError
from opt_trt.text import tokenizer
from opt_trt.text.tokenizer import load_tokenizer

DEMO = Path(__file__).parents[3] / "examples" / "demo" / "model"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copy(DEMO / name, tmp_path)
    return tmp_path


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_tokenizer(directory)
    return str(caught.value)


@pytest.mark.parametrize(
    "values",
    [{"model_max_length": "x"}, {"tokenizer_class": "RagTokenizer"}, {"tokenizer_class": "ByT5Tokenizer"}, [1], 5],
)
def test_settings_of_wrong_types_are_named(copied: Path, values: Any) -> None:
    path = copied / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values if isinstance(values, dict) else values))
    assert str(copied) in refusal(copied)


def test_a_panic_of_the_library_is_an_error_of_the_user(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """What a library in Rust raises."""

    def panic(directory: Path) -> Any:
        raise PanicException("called `Option::unwrap()`\non a `None` value")

    monkeypatch.setattr(tokenizer, "_load", panic)
    assert "cannot be read (called `Option::unwrap()` on a `None` value)" in refusal(copied)
    monkeypatch.setattr(tokenizer, "_load", lambda directory: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(copied)


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "tokenizer_config.json", "config.json"])
def test_sparse_files_and_pipes_are_refused(copied: Path, name: str) -> None:
    with (copied / name).open("r+b") as file:
        file.truncate(1 << 38)
    assert f"{copied / name} has more than 16 MiB" in refusal(copied)
    (copied / name).unlink()
    os.mkfifo(copied / name)
    said = refusal(copied)
    assert "is a FIFO, expected a regular file" in said or "holds no tokenizer" in said
