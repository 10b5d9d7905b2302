"""The tensors of an OPT checkpoint: their shapes, their cut for tensor-parallel ranks, and their pipeline stage.

This module knows nothing of quantization, because weights are cut before they are quantized.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from opt_trt.errors import UserError, divide_exactly
from opt_trt.model.config import ModelConfig


@dataclass(frozen=True)
class Split:
    """The cut of a tensor along `dim` for tensor-parallel ranks; None: every rank holds the whole tensor.

    The axis consists of `blocks` equal blocks, and a rank holds its part of each of them. `padded` fills the length up
    with zeros to a multiple of `tp_size`; without it a remainder is refused.
    """

    dim: int | None
    blocks: int = 1
    padded: bool = False


WHOLE = Split(None)
ROWS = Split(0)  # output features
COLUMNS = Split(1)  # input features; products of the ranks are added up
QKV_ROWS = Split(0, blocks=3)  # each rank's q rows, then its k rows, then its v rows
VOCAB_ROWS = Split(0, padded=True)
LAYER = re.compile(r"transformer\.layers\.(\d+)\.(.+)")
LINEARS = ("attention.qkv.weight", "attention.dense.weight", "mlp.fc.weight", "mlp.proj.weight")
EMBEDDING_SPLITS = {0: VOCAB_ROWS, 1: COLUMNS}  # by embedding_sharding_dim


@dataclass(frozen=True)
class Placement:
    """The shape of a whole tensor and its cut."""

    shape: tuple[int, ...]
    split: Split

    def local_shape(self, tp_size: int) -> tuple[int, ...]:
        """Return the shape of each rank's part."""
        dim = self.split.dim
        if dim is None:
            return self.shape
        return (*self.shape[:dim], self._local_length(tp_size), *self.shape[dim + 1 :])

    def cut(self, tensor: torch.Tensor, tp_size: int, tp_rank: int) -> torch.Tensor:
        """Return the part of a rank, as a view if its elements are evenly spaced."""
        dim, blocks = self.split.dim, self.split.blocks
        if dim is None or tp_size == 1:
            return tensor
        length = self._local_length(tp_size)
        if self.split.padded:
            start = min(tp_rank * length, tensor.shape[dim])
            part = tensor.narrow(dim, start, min(length, tensor.shape[dim] - start))
            filler = part.new_zeros((*part.shape[:dim], length - part.shape[dim], *part.shape[dim + 1 :]))
            return torch.cat((part, filler), dim) if filler.numel() else part
        in_block = length // blocks
        parts = _in_blocks(tensor, dim, blocks).narrow(dim + 1, tp_rank * in_block, in_block)
        return parts.flatten(dim, dim + 1)

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the whole tensor, made of the parts of all ranks in rank order; the inverse of `cut`."""
        dim, blocks = self.split.dim, self.split.blocks
        if dim is None or len(parts) == 1:
            return parts[0]
        joined = torch.cat([_in_blocks(part, dim, blocks) for part in parts], dim + 1).flatten(dim, dim + 1)
        return joined.narrow(dim, 0, self.shape[dim])

    def _local_length(self, tp_size: int) -> int:
        assert self.split.dim is not None
        length, blocks = self.shape[self.split.dim], self.split.blocks
        if self.split.padded:
            return -(-length // tp_size)
        return blocks * divide_exactly(length // blocks, tp_size, f"length {length} over tp_size {tp_size}")


def placements(config: ModelConfig) -> dict[str, Placement]:
    """Return the placement of every tensor by TensorRT-LLM's name, in the order in which the model uses them.

    `UserError` if `tp_size` does not divide an axis that is cut, or if there are more stages than layers.
    """
    check_tp_size(config)
    if config.mapping.pp_size > config.num_hidden_layers:
        stages, layers = config.mapping.pp_size, config.num_hidden_layers
        raise UserError(f"pp_size {stages} leaves stages without a layer; use at most {layers}")
    hidden = config.hidden_size
    embedding = EMBEDDING_SPLITS[config.embedding_sharding_dim] if config.use_parallel_embedding else WHOLE
    table = {
        "transformer.vocab_embedding.weight": Placement((config.vocab_size, hidden), embedding),
        "transformer.position_embedding.weight": Placement((config.max_position_embeddings, hidden), embedding),
    }
    layer = _layer_placements(config)
    for index in range(config.num_hidden_layers):
        table |= {f"transformer.layers.{index}.{name}": placement for name, placement in layer.items()}
    if config.has_final_layer_norm:
        table |= {f"transformer.ln_f.{kind}": Placement((hidden,), WHOLE) for kind in ("weight", "bias")}
    return table | {"lm_head.weight": Placement((config.vocab_size, hidden), VOCAB_ROWS)}


def stage_names(config: ModelConfig, pp_rank: int) -> dict[str, str]:
    """Map the name of every tensor of a pipeline stage to its name in the rank files of the stage.

    Each stage numbers its layers from 0. The first stage holds the tables; the last stage holds `ln_f` and `lm_head`.
    """
    layers = config.stage_layers(pp_rank)
    first, last = pp_rank == 0, pp_rank == config.mapping.pp_size - 1
    names = {}
    for name in placements(config):
        if layer := LAYER.fullmatch(name):
            if int(layer[1]) in layers:
                names[name] = f"transformer.layers.{int(layer[1]) - layers.start}.{layer[2]}"
        elif first if name.endswith("_embedding.weight") else last:
            names[name] = name
    return names


def is_linear(name: str) -> bool:
    """Return whether a tensor is a linear weight of a layer; these are the tensors that weight-only modes quantize."""
    layer = LAYER.fullmatch(name)
    return layer is not None and layer[2] in LINEARS


def indivisible(config: ModelConfig, tp_size: int) -> list[str]:
    """List the sizes that `tp_size` does not divide although they have to be cut; empty if the model can be cut."""
    heads, ffn, hidden = config.num_attention_heads, config.intermediate_size, config.hidden_size
    lengths = {f"{heads} attention heads": heads, f"intermediate_size {ffn}": ffn}
    if config.use_parallel_embedding and EMBEDDING_SPLITS[config.embedding_sharding_dim] == COLUMNS:
        lengths[f"hidden_size {hidden} (embedding_sharding_dim 1)"] = hidden
    return [what for what, length in lengths.items() if length % tp_size]


def check_tp_size(config: ModelConfig, fitting: Sequence[int] = ()) -> None:
    """Refuse a `tp_size` by which the model cannot be cut; the error names the `fitting` sizes, or finds them."""
    tp_size = config.mapping.tp_size
    if problems := indivisible(config, tp_size):
        fitting = fitting or [n for n in range(1, config.num_attention_heads + 1) if not indivisible(config, n)]
        sizes = f"one of {', '.join(map(str, fitting))}" if len(fitting) > 1 else str(fitting[0])
        raise UserError(f"tp_size {tp_size} does not divide {', '.join(problems)}; use {sizes}")


def _in_blocks(tensor: torch.Tensor, dim: int, blocks: int) -> torch.Tensor:
    """Split the axis `dim` in two: `[3H, H]` → `[3, H, H]`."""
    return tensor.reshape(*tensor.shape[:dim], blocks, -1, *tensor.shape[dim + 1 :])


def _layer_placements(config: ModelConfig) -> dict[str, Placement]:
    hidden, ffn = config.hidden_size, config.intermediate_size
    vector = Placement((hidden,), WHOLE)
    return {
        "input_layernorm.weight": vector,
        "input_layernorm.bias": vector,
        "attention.qkv.weight": Placement((3 * hidden, hidden), QKV_ROWS),
        "attention.qkv.bias": Placement((3 * hidden,), QKV_ROWS),
        "attention.dense.weight": Placement((hidden, hidden), COLUMNS),
        "attention.dense.bias": vector,  # added once, after the sum over ranks
        "post_layernorm.weight": vector,
        "post_layernorm.bias": vector,
        "mlp.fc.weight": Placement((ffn, hidden), ROWS),
        "mlp.fc.bias": Placement((ffn,), ROWS),
        "mlp.proj.weight": Placement((hidden, ffn), COLUMNS),
        "mlp.proj.bias": vector,
    }
