"""Tokenizer directories: one laid out as OPT's, byte-level BPE with `</s>` in front, and some of other kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

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


def fast_tokenizer(directory: Path, kind: str) -> Path:
    """Write a small tokenizer of another kind than OPT's, with `</s>` (2) as its end and `<pad>` (1)."""
    pieces, decoder = KINDS[kind]
    tokens = ["<unk>", "<pad>", "</s>", *pieces]
    fast = Fast(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    if decoder is not None:
        fast.decoder = decoder
    if any(piece.startswith("\u2581") for piece in pieces):
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=fast, **special).save_pretrained(directory)
    return directory


BYTES = [f"<0x{byte:02X}>" for byte in (0x41, 0x0A, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80)]
METASPACE = ["\u2581one", "\u2581two", "six", "\u2581", "\u2581\u2581", "."]
LLAMA = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
# Tokens and decoder of each kind; the models behind them do not matter for decoding.
KINDS: dict[str, tuple[list[str], Any]] = {
    "metaspace": (METASPACE, decoders.Metaspace()),
    "word pieces": (["one", "two", "##s", ".", ",", "'", "n", "##'t"], decoders.WordPiece()),
    "byte fallback": ([*METASPACE, *BYTES], decoders.Sequence(LLAMA)),
    "suffixes": (["one</w>", "tw", "o</w>", ".</w>"], decoders.BPEDecoder()),
    "repeats": (["a", "b", "|"], decoders.CTC()),
    "words": (["one", "two"], None),
    "several spaces stripped": (METASPACE, decoders.Sequence([*LLAMA[:3], decoders.Strip(" ", 3, 0)])),
    "edited as a whole": ([*METASPACE, *BYTES], decoders.Sequence([*LLAMA[:3], decoders.Replace(" .", ".")])),
}
