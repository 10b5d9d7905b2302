"""The inputs of a network, and the sizes that its optimization profiles allow them."""

from __future__ import annotations

from typing import Any

import torch

from opt_trt.backends.tensorrt.bindings import (
    GENERATION,
    INPUT_IDS,
    POSITION_IDS,
    PROMPT,
    WANTED,
    WRITE_INDICES,
    EngineShape,
    cache_names,
)  # fmt: skip
from opt_trt.backends.tensorrt.constants import data_type
from opt_trt.backends.tensorrt.library import Library
from opt_trt.model.config import ModelConfig

Dimensions = tuple[int | str, ...]  # a dynamic dimension by its name: dimensions of one name have equal lengths
Range = tuple[int, int, int]  # the shortest length, the one that kernels are chosen for, the longest
DYNAMIC = -1


def input_table(model: ModelConfig, shape: EngineShape) -> dict[str, tuple[torch.dtype, Dimensions]]:
    """Return type and dimensions of every input of a rank's network."""
    cache = (getattr(torch, model.dtype), ("batch", model.local_heads, shape.capacity, model.head_size))
    new_tokens = (torch.int32, ("batch", "tokens"))
    return {
        INPUT_IDS: new_tokens,
        POSITION_IDS: new_tokens,
        WRITE_INDICES: (torch.int32, ("batch",)),
        WANTED: (torch.int32, ("wanted",)),
    } | dict.fromkeys(cache_names(model.num_hidden_layers), cache)


def profile_ranges(shape: EngineShape) -> dict[int, dict[str, Range]]:
    """Return the lengths of the dynamic dimensions in each profile."""
    slots, usual, most = shape.slots, shape.usual_tokens, shape.most_tokens
    return {
        PROMPT: {"batch": (1, 1, 1), "tokens": (1, usual, most), "wanted": (1, 1, most)},
        GENERATION: {"batch": (1, slots, slots), "tokens": (1, 1, 1), "wanted": (1, slots, slots)},
    }


def add_inputs(library: Library, network: Any, table: dict[str, tuple[torch.dtype, Dimensions]]) -> dict[str, Any]:
    """Add the inputs of a table. Without names of dimensions the compiler would copy every cache at every step."""
    inputs = {}
    for name, (dtype, dimensions) in table.items():
        lengths = tuple(DYNAMIC if isinstance(length, str) else length for length in dimensions)
        inputs[name] = network.add_input(name, data_type(library, dtype), lengths)
        for axis, length in enumerate(dimensions):
            if isinstance(length, str):
                inputs[name].set_dimension_name(axis, length)
    return inputs


def add_profiles(builder: Any, config: Any, model: ModelConfig, shape: EngineShape) -> None:
    """Add both profiles to a builder's configuration, in the order of their numbers."""
    table = input_table(model, shape)
    for _, ranges in sorted(profile_ranges(shape).items()):
        profile = builder.create_optimization_profile()
        for name, (_, dimensions) in table.items():
            lengths = [ranges[length] if isinstance(length, str) else (length,) * 3 for length in dimensions]
            profile.set_shape(name, *zip(*lengths, strict=True))
        config.add_optimization_profile(profile)
