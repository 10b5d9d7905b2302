"""The systems we are measured beside: one row each, one file each, in an environment of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opt_trt.errors import UserError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """Who they are: the script that runs them, what they need, and the variants they have."""

    script: str
    requirements: str | None  # None: they are part of this project's environment
    variants: Mapping[str, str]  # of each precision of ours, what is measured unless a variant is named
    others: tuple[str, ...] = ()  # variants to be asked for by name
    converts: bool = True  # False: reads a Hugging Face directory as it is

    @property
    def known(self) -> tuple[str, ...]:
        """All variants."""
        return tuple(dict.fromkeys((*self.variants.values(), *self.others)))


PLAIN = {
    "float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "int8": "float16", "int4": "float16",
    "int8-bfloat16": "bfloat16", "int4-bfloat16": "bfloat16",
}  # fmt: skip
PEERS = {
    "transformers": Peer("run_transformers.py", None, PLAIN, converts=False),
    "transformers-compiled": Peer("run_transformers_compiled.py", None, PLAIN, converts=False),
    "ctranslate2": Peer(
        "run_ctranslate2.py",
        "requirements-ctranslate2.txt",
        {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16", "int8": "int8", "int4": "int8",
         "int8-bfloat16": "int8", "int4-bfloat16": "int8"},
        ("int8_bfloat16", "int8_float32"),
    ),
    "openvino": Peer(
        "run_openvino.py",
        "requirements-openvino.txt",
        {"float32": "fp32-f32", "float16": "fp16", "bfloat16": "fp16", "int8": "int8", "int4": "int4",
         "int8-bfloat16": "int8-bf16", "int4-bfloat16": "int4-bf16"},
        ("fp16-f32", "int8-f32", "int4-f32"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A peer in one variant, written `openvino:int8-bf16`, or `openvino` for the one nearest to a precision."""

    name: str
    variant: str

    @property
    def peer(self) -> Peer:
        """Its row."""
        return PEERS[self.name]

    @property
    def label(self) -> str:
        """How it is called in tables."""
        return f"{self.name}:{self.variant}"


def parse_choice(text: str, precision: str) -> Choice:
    """`name` or `name:variant`; `UserError` for one that is not known."""
    name, _, variant = text.partition(":")
    if name not in PEERS:
        raise UserError(f"--peers must be of {', '.join(PEERS)}, found {name!r}")
    peer = PEERS[name]
    if variant and variant not in peer.known:
        raise UserError(f"--peers {name} has the variants {', '.join(peer.known)}, found {variant!r}")
    return Choice(name, variant or peer.variants[precision])


def parse_choices(text: str, precision: str) -> list[Choice]:
    """A comma-separated list, each peer and variant once; nothing for the empty text."""
    return list(dict.fromkeys(parse_choice(part, precision) for part in text.split(",") if part))
