"""The interface of every source: one OPT with Hugging Face's tensor names, read tensor by tensor.

Names have no `model.` prefix: `decoder.layers.0.fc1.weight`, `lm_head.weight`.
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
    """The hyper-parameters of an OPT, as stated by its source."""

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
    hidden_act: str = "relu"
    has_biases: bool = True  # linears have biases; Galactica's have none
    has_norm_weights: bool = True  # layer norms scale and shift
    end_token_ids: tuple[int, ...] | None = None  # tokens that end an output; None: `eos_token_id` alone

    @property
    def has_projections(self) -> bool:
        """True if embeddings are narrower than the decoder (350M) and projections connect the two."""
        return self.word_embed_proj_dim != self.hidden_size

    @property
    def has_final_layer_norm(self) -> bool:
        """True if a layer norm follows the last layer."""
        return self.do_layer_norm_before and not self.remove_final_layer_norm


class Source(Protocol):
    """An open source; all its tensors exist and have the right shapes."""

    @property
    def config(self) -> OptConfig:
        """The hyper-parameters that the source states."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user on how the source was read."""
        ...

    def has(self, name: str) -> bool:
        """Return whether the source stores this tensor (only `lm_head.weight` may be absent)."""
        ...

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the rows of a tensor in order, as stored, a few MiB at a time; a block is valid until the next one."""
        ...

    def where(self, name: str) -> str:
        """Return the tensor's own name and its file, for errors."""
        ...


def source_shapes(config: OptConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that a source of this OPT stores; it may leave out a tied `lm_head.weight`."""
    return {name: shape for name, shape in tensor_shapes(config).items() if constant(config, name) is None}


def constant(config: OptConfig, name: str) -> float | None:
    """Return the value of all elements of a tensor that this OPT does not store; None for a stored tensor."""
    if "layer_norm" in name:
        return None if config.has_norm_weights else float(name.endswith(".weight"))
    return 0.0 if name.endswith(".bias") and not config.has_biases else None


def tensor_shapes(config: OptConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that this OPT computes with, stored or constant."""
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
