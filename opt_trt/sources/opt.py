"""What every source presents: one OPT under Hugging Face's tensor names, read tensor by tensor.

Names are without the optional `model.` prefix: `decoder.layers.0.fc1.weight`, `lm_head.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

EMBEDDING = "decoder.embed_tokens.weight"
POSITIONS = "decoder.embed_positions.weight"
PROJECT_IN = "decoder.project_in.weight"
PROJECT_OUT = "decoder.project_out.weight"
HEAD = "lm_head.weight"
OFFSET_ROWS = 2  # OPT looks up position p in row p + 2


@dataclass(frozen=True)
class OptConfig:
    """The hyper-parameters of an OPT, as its source states them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int
    max_position_embeddings: int  # without the offset rows
    word_embed_proj_dim: int
    do_layer_norm_before: bool
    remove_final_layer_norm: bool
    tie_word_embeddings: bool
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    @property
    def has_projections(self) -> bool:
        """Whether embeddings are narrower than the decoder (350M), with a projection on either side of it."""
        return self.word_embed_proj_dim != self.hidden_size

    @property
    def has_final_layer_norm(self) -> bool:
        """Whether a layer norm follows the last layer."""
        return self.do_layer_norm_before and not self.remove_final_layer_norm


class Source(Protocol):
    """An opened source: its tensors are known to be all there, with the right shapes."""

    @property
    def config(self) -> OptConfig:
        """What the source says of its model."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person may want to know of how it was read, a line each."""
        ...

    def has(self, name: str) -> bool:
        """Whether the source stores this tensor (only `lm_head.weight` may be absent)."""
        ...

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The rows of a tensor in order, a few MiB at a time, as stored; a block is valid until the next one."""
        ...

    def where(self, name: str) -> str:
        """The tensor's own spelling and its file, for errors."""
        ...


def source_shapes(config: OptConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a source of this OPT holds; `lm_head.weight` may be left out when it is tied."""
    vocab, hidden, width = config.vocab_size, config.hidden_size, config.word_embed_proj_dim
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (vocab, width),
        POSITIONS: (config.max_position_embeddings + OFFSET_ROWS, hidden),
        HEAD: (vocab, width),
    }
    if config.has_projections:
        shapes |= {PROJECT_IN: (hidden, width), PROJECT_OUT: (width, hidden)}
    if config.has_final_layer_norm:
        shapes |= _pair("decoder.final_layer_norm", (hidden,))
    for layer in range(config.num_hidden_layers):
        for part, weight in _layer_weights(config).items():
            shapes |= _pair(f"decoder.layers.{layer}.{part}", weight)
    return shapes


def _layer_weights(config: OptConfig) -> dict[str, tuple[int, ...]]:
    hidden, ffn = config.hidden_size, config.ffn_dim
    return {
        "self_attn_layer_norm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, hidden),
        "self_attn.v_proj": (hidden, hidden),
        "self_attn.out_proj": (hidden, hidden),
        "final_layer_norm": (hidden,),
        "fc1": (ffn, hidden),
        "fc2": (hidden, ffn),
    }


def _pair(prefix: str, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": weight, f"{prefix}.bias": weight[:1]}
