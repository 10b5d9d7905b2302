"""The tensors that a rank of a checkpoint must hold: names, shapes and dtypes of plain, packed and deferred weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from opt_trt.checkpoint.packing import shape_problems
from opt_trt.checkpoint.writer import TensorSpec
from opt_trt.errors import UserError, spelled
from opt_trt.model.config import ModelConfig
from opt_trt.model.mapping import Mapping
from opt_trt.model.placement import check_tp_size, indivisible, is_linear, placements, stage_names
from opt_trt.quant import ALGORITHMS
from opt_trt.quant.mode import QuantMode, scale_name

LOADER_STEP = 64  # TensorRT-LLM rounds the features per rank of weight-only linears up to a multiple of this


def packed_mode(config: ModelConfig) -> QuantMode | None:
    """Return the quantization mode of stored linears; None if they are stored in the model's dtype."""
    return None if config.defer_quantization or config.quant_algo is None else ALGORITHMS[config.quant_algo]


def tensor_spec(config: ModelConfig, rank: int = 0) -> dict[str, TensorSpec]:
    """Return name, shape and dtype of every tensor of a rank file, in the order in which the model uses them.

    All ranks of a pipeline stage have the same shapes.
    """
    dtype: torch.dtype = getattr(torch, config.dtype)
    tp_size, mode, table = config.mapping.tp_size, packed_mode(config), placements(config)
    spec: dict[str, TensorSpec] = {}
    for whole, name in stage_names(config, config.mapping.pp_rank(rank)).items():
        shape = table[whole].local_shape(tp_size)
        if mode is not None and is_linear(whole):
            weight, scale = mode.spec(shape[0], shape[1])
            spec |= {name: TensorSpec(weight, torch.int8), scale_name(name): TensorSpec(scale, dtype)}
        else:
            spec[name] = TensorSpec(shape, dtype)
    return spec


def check_shards(config: ModelConfig) -> None:
    """Refuse shards of unequal size and shards that kernels of `target_sm` cannot read; name the sizes that fit."""
    tp_size, heads = config.mapping.tp_size, range(1, config.num_attention_heads + 1)
    fitting = [n for n in heads if not indivisible(config, n) and not _packing_problems(config, n)]
    check_tp_size(config, fitting)
    if problems := _packing_problems(config, tp_size):
        sizes = ", ".join(map(str, fitting))
        advice = f"use a {spelled('tp_size')} of {sizes}, or" if fitting else f"no {spelled('tp_size')} fits: use"
        raise UserError(
            f"at tp_size {tp_size} weights cannot be packed for SM {config.target_sm}: {'; '.join(problems)}; "
            f"{advice} {spelled('defer_quantization')}"
        )


def unloadable(config: ModelConfig) -> list[str]:
    """List the quantized linears that TensorRT-LLM's loader would round up to another shape."""
    shapes = _linear_shapes(config, config.mapping.tp_size).items() if config.quant_algo else ()
    return [f"{name} {list(shape)}" for name, shape in shapes if any(length % LOADER_STEP for length in shape)]


def _packing_problems(config: ModelConfig, tp_size: int) -> list[str]:
    mode = packed_mode(config)
    if mode is None:
        return []
    assert config.target_sm is not None
    problems = []
    for name, shape in _linear_shapes(config, tp_size).items():
        if found := shape_problems(shape[0], shape[1], mode.bits, config.target_sm):
            problems.append(f"{name} (of every layer): {' and '.join(found)}")
    return problems


def _linear_shapes(config: ModelConfig, tp_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of a rank's part of each linear of the first layer; all layers have the same shapes."""
    table = placements(replace(config, num_hidden_layers=1, mapping=Mapping()))
    return {name: place.local_shape(tp_size) for name, place in table.items() if is_linear(name)}
