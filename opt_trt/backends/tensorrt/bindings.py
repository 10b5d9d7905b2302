"""The contract between network and decoder: names, types and shapes of an engine's inputs and outputs.

`B` rows are sequences, `S` their new tokens, `L` the tokens whose logits are wanted; `H` heads of size `D`, `C` the
tokens a cache has room for, `E` the hidden size, `V` the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

PROMPT, GENERATION = 0, 1  # the optimization profiles: one row of many tokens; many rows of one token

INPUT_IDS = "input_ids"  # int32 [B, S]
POSITION_IDS = "position_ids"  # int32 [B, S], position in its sequence, from 0
WRITE_INDICES = "write_indices"  # int32 [B], the row of the cache that takes a sequence's first new token
WANTED = "wanted"  # int32 [L], indices into the B * S new tokens
LOGITS = "logits"  # fp32 or fp16 [L, V]
HIDDEN = "hidden"  # of the model's type [L, E], behind the last norm (and projection), from which logits are computed

Tensors = Mapping[str, torch.Tensor]
# A profile, the four inputs above and the caches, all by name → LOGITS and HIDDEN. New keys and values are written into
# the caches in place. An engine on a GPU and the interpreter of the tests are two of these.
Run = Callable[[int, Tensors, Tensors], Tensors]


def cache_names(num_layers: int) -> list[str]:
    """Return the inputs that are caches, `[B, H, C, D]` of the model's type: keys and values of each layer in turn."""
    return [name for layer in range(num_layers) for name in layer_caches(layer)]


def layer_caches(layer: int) -> tuple[str, str]:
    """Return the inputs that are the caches of a layer's keys and of its values."""
    return f"key_cache_{layer}", f"value_cache_{layer}"


def cache_output(name: str) -> str:
    """Return the output that is the cache `name` after the step; it lies at the same address."""
    return f"{name}_out"


@dataclass(frozen=True)
class EngineShape:
    """The sizes that a network is built for."""

    slots: int  # the most rows of a generation step; each sequence has a row of the caches
    capacity: int  # C: the longest sequence, and at least one row behind it that idle rows write to
    most_tokens: int  # the most tokens of a prompt in one step
    usual_tokens: int  # the number of prompt tokens that kernels are chosen for
