"""The peers: other systems that are measured beside ours. Each has a row, a script and an environment of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opt_trt.errors import UserError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """A peer: the script that runs it, its requirements, and its variants."""

    script: str
    requirements: str | None  # None: this project's environment has them
    variants: Mapping[str, str]  # the default variant for each precision of ours
    others: tuple[str, ...] = ()  # variants that have to be named
    converts: bool = True  # False: it reads a Hugging Face directory directly

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
class PeerVariant:
    """A peer in one variant, written `openvino:int8-bf16`, or `openvino` for the one nearest to a precision."""

    name: str
    variant: str

    @property
    def peer(self) -> Peer:
        """The peer's row in the table."""
        return PEERS[self.name]

    @property
    def label(self) -> str:
        """The name in tables."""
        return f"{self.name}:{self.variant}"


def parse_variant(text: str, precision: str) -> PeerVariant:
    """Parse `name` or `name:variant`; `UserError` if it is unknown."""
    name, _, variant = text.partition(":")
    if name not in PEERS:
        raise UserError(f"--peers must be of {', '.join(PEERS)}, found {name!r}")
    peer = PEERS[name]
    if variant and variant not in peer.known:
        raise UserError(f"--peers {name} has the variants {', '.join(peer.known)}, found {variant!r}")
    return PeerVariant(name, variant or peer.variants[precision])


def parse_variants(text: str, precision: str) -> list[PeerVariant]:
    """Parse a comma-separated list and drop repetitions; an empty text gives an empty list."""
    return list(dict.fromkeys(parse_variant(part, precision) for part in text.split(",") if part))
