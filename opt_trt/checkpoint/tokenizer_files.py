"""The files of a tokenizer: a checkpoint and an engine keep those of their model in a folder beside their own files.

TensorRT-LLM reads the files it knows by name, and so passes over the folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

FOLDER = "tokenizer"
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip
NEEDED = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # the files of one of these groups must exist
KEPT = tuple(f"{FOLDER}/{name}" for name in FILES)  # what may stand in the folder
LARGEST = 64 << 20  # bytes of a file; OPT's tokenizer has 1 MB


def tokenizer_files(directory: Path) -> list[Path]:
    """Return the tokenizer's files in a directory; files beyond any tokenizer's size are none."""
    paths = (directory / name for name in FILES)
    return [path for path in paths if path.is_file() and path.stat().st_size <= LARGEST]


def holds_tokenizer(directory: Path) -> bool:
    """Return whether the directory has the files of a tokenizer."""
    return any(all((directory / name).is_file() for name in group) for group in NEEDED)


def keep_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer of `source`, an original model, a checkpoint or an engine, into the folder of `target`."""
    found = source if holds_tokenizer(source) else source / FOLDER
    if not holds_tokenizer(found):
        return
    (target / FOLDER).mkdir()
    for file in tokenizer_files(found):
        shutil.copyfile(file, target / FOLDER / file.name)


def kept_tokenizer(directory: Path) -> Path | None:
    """Return the folder with the tokenizer of a checkpoint or an engine, or None if it has none."""
    return directory / FOLDER if holds_tokenizer(directory / FOLDER) else None
