"""A tokenizer directory laid out as OPT's: byte-level BPE in `vocab.json` and `merges.txt`, `</s>` in front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
SETTINGS = {
    "errors": "replace",
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "</s>",
    "pad_token": "<pad>",
    "add_prefix_space": False,
    "add_bos_token": True,
    "tokenizer_class": "GPT2Tokenizer",
}
SPACE = "Ġ"  # how byte-level BPE writes a space
VOCAB_SIZE = len(SPECIAL) + 256 + 1  # every byte is a token; " a" is the one merge


def ids_of(text: str) -> tuple[int, ...]:
    """Return the ids of printable ASCII without spaces: `!` is the first letter of the alphabet, with id 4."""
    return tuple(len(SPECIAL) + ord(letter) - ord("!") for letter in text)


def write_tokenizer(directory: Path, **settings: Any) -> Path:
    """Write the files; a setting of None leaves its line out."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), SPACE + "a"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (directory / "merges.txt").write_text(f"#version: 0.2\n{SPACE} a\n", encoding="utf-8")
    kept = {name: value for name, value in (SETTINGS | settings).items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
    return directory
