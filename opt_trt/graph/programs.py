"""The programs of a decoder, with the example inputs and dynamic axes that a compiler needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim

from opt_trt.graph.decoder import Head, Layer
from opt_trt.graph.embedding import embedding_constants, embedding_module
from opt_trt.model.config import ModelConfig
from opt_trt.model.mapping import Mapping
from opt_trt.ops import Ops

# Example sizes are at least 2 and all different: torch specializes axes of size 1, and ties equal ones together.
TOKENS, SEQUENCES, BLOCKS, WIDTH, LOGITS = 5, 3, 7, 2, 4


@dataclass(frozen=True)
class ProgramSpec:
    """A program: `module(*args)`, and the axes that vary from step to step."""

    name: str
    module: torch.nn.Module
    args: tuple[Any, ...]
    dynamic_shapes: tuple[Any, ...]


@dataclass(frozen=True)
class GraphShapes:
    """The sizes and types that a compiled program fixes besides the model's own; the batch size is not among them."""

    tokens_per_block: int
    weights: dict[str, tuple[tuple[int, ...], torch.dtype]]  # by checkpoint name, in the engine's layout
    activations: torch.dtype = torch.float32
    device: str = "cpu"
    one_token_each: bool = False  # for steps that only generate: they have as many sequences as tokens


def stage_programs(mapping: Mapping, stage: int) -> tuple[str, ...]:
    """Name the programs that a pipeline stage runs."""
    first, last = stage == 0, stage == mapping.pp_size - 1
    return ("embedding",) * first + ("layer",) + ("head",) * last


def embedding_program(config: ModelConfig, ops: Ops, shapes: GraphShapes, names: tuple[str, ...]) -> ProgramSpec:
    """Specify the embedding: token and position ids → hidden states; `names` are the two tables."""
    tokens = Dim("tokens", min=1)
    ids = torch.zeros(TOKENS, dtype=torch.int64, device=shapes.device)
    constants = embedding_constants(config, 0, shapes.device)
    return ProgramSpec(
        "embedding",
        embedding_module(config, ops),
        (ids, ids.clone(), *_examples(shapes, names), *constants),
        ({0: tokens}, {0: tokens}, None, None, *[None] * len(constants)),
    )


def layer_program(config: ModelConfig, ops: Ops, shapes: GraphShapes, names: tuple[str, ...]) -> ProgramSpec:
    """Specify a decoder layer; `names` are its weights."""
    tokens = Dim("tokens", min=1)
    sequences, count = (tokens, TOKENS) if shapes.one_token_each else (Dim("sequences", min=1), SEQUENCES)
    blocks, width = Dim("blocks", min=1), Dim("width", min=1)
    kv_cache = torch.zeros(
        BLOCKS, 2, config.local_heads, shapes.tokens_per_block, config.head_size,
        dtype=getattr(torch, config.dtype), device=shapes.device,
    )  # fmt: skip
    step = [
        torch.arange(TOKENS, device=shapes.device),
        torch.arange(count + 1, dtype=torch.int32, device=shapes.device),
        torch.ones(count, dtype=torch.int32, device=shapes.device),
        torch.zeros(count, WIDTH, dtype=torch.int32, device=shapes.device),
    ]
    dynamic = ({0: tokens}, {0: sequences + 1}, {0: sequences}, {0: sequences, 1: width})
    return ProgramSpec(
        "layer",
        Layer(config, ops),
        (_hidden(config, shapes), _examples(shapes, names), kv_cache, step),
        ({0: tokens}, [None] * len(names), {0: blocks}, list(dynamic)),
    )


def head_program(config: ModelConfig, ops: Ops, shapes: GraphShapes, names: tuple[str, ...]) -> ProgramSpec:
    """Specify the head: hidden states → logits of the wanted tokens; `names` are final norm (if any) and head."""
    tokens = Dim("tokens", min=1)
    wanted = Dim("wanted", min=1)
    return ProgramSpec(
        "head",
        Head(config, ops),
        (_hidden(config, shapes), torch.arange(LOGITS, device=shapes.device), _examples(shapes, names)),
        ({0: tokens}, {0: wanted}, [None] * len(names)),
    )


def _examples(shapes: GraphShapes, names: tuple[str, ...]) -> list[torch.Tensor]:
    wanted = (shapes.weights[name] for name in names)
    return [torch.zeros(shape, dtype=dtype, device=shapes.device) for shape, dtype in wanted]


def _hidden(config: ModelConfig, shapes: GraphShapes) -> torch.Tensor:
    return torch.zeros(TOKENS, config.hidden_size, dtype=shapes.activations, device=shapes.device)
