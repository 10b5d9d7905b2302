"""Turn any source of OPT weights into canonical tensors, which have TensorRT-LLM's names and one dtype.

q, k and v are merged. The offset rows of the position table are dropped. `project_in` and `project_out` are multiplied
into the embedding and the head. A tied head is written out. Models without biases or norm weights get zeros and ones.
Values are checked: tensors with values that are not finite are refused, and tensors that look damaged get a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch

from opt_trt.errors import UserError, spelled
from opt_trt.sources.opt import (
    EMBEDDING,
    HEAD,
    OFFSET_ROWS,
    POSITIONS,
    PROJECT_IN,
    PROJECT_OUT,
    OptConfig,
    Source,
    constant,
    tensor_shapes,
)
from opt_trt.sources.verify import outlier_warnings, pad_row_warning

LAYER_PARTS = {  # canonical part: the source's parts, which are concatenated along output features
    "input_layernorm": ("self_attn_layer_norm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.out_proj",),
    "post_layernorm": ("final_layer_norm",),
    "mlp.fc": ("fc1",),
    "mlp.proj": ("fc2",),
}


def canonical_tensors(
    source: Source,
    dtype: torch.dtype,
    empty: Callable[..., torch.Tensor] = torch.empty,
    warn: Callable[[str], object] = lambda line: None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the model once, in `dtype`; one tensor and one block of its source are in memory.

    `empty(shape, dtype=dtype)` allocates the tensors. `warn` is called with a line for each tensor that may be damaged;
    warnings that compare layers come after the last one.
    """
    reader = _Reader(source, dtype, empty, tensor_shapes(source.config))
    tables = {
        EMBEDDING: lambda: reader.table(EMBEDDING, PROJECT_IN),
        POSITIONS: lambda: reader.positions(warn),
        HEAD: lambda: reader.table(_head(source), PROJECT_OUT),
    }
    for name, parts in canonical_parts(source.config).items():
        yield name, tables[parts[0]]() if parts[0] in tables else reader.concatenated(*parts)
    for line in outlier_warnings(source, reader.largest):
        warn(line)


def canonical_parts(config: OptConfig) -> dict[str, tuple[str, ...]]:
    """Map every canonical tensor, in the order in which the model uses them, to the source's tensors in it."""
    parts: dict[str, tuple[str, ...]] = {
        "transformer.vocab_embedding.weight": (EMBEDDING,),
        "transformer.position_embedding.weight": (POSITIONS,),
    }
    for layer in range(config.num_hidden_layers):
        for part, sources in LAYER_PARTS.items():
            for kind in ("weight", "bias"):
                names = tuple(f"decoder.layers.{layer}.{name}.{kind}" for name in sources)
                parts[f"transformer.layers.{layer}.{part}.{kind}"] = names
    if config.has_final_layer_norm:
        parts |= {f"transformer.ln_f.{kind}": (f"decoder.final_layer_norm.{kind}",) for kind in ("weight", "bias")}
    return parts | {"lm_head.weight": (HEAD,)}


@dataclass(frozen=True)
class _Reader:
    """A reader that fills tensors of one dtype from the blocks of a source, and checks each block."""

    source: Source
    dtype: torch.dtype
    empty: Callable[..., torch.Tensor]
    shapes: dict[str, tuple[int, ...]]
    largest: dict[str, float] = field(default_factory=dict)  # the largest absolute value of each tensor that was read

    def concatenated(self, *names: str) -> torch.Tensor:
        """Concatenate tensors along output features; tensors that the source does not store are constant."""
        rows = sum(self.shapes[name][0] for name in names)
        filled = self.empty((rows, *self.shapes[names[0]][1:]), dtype=self.dtype)
        start = 0
        for name in names:
            part = filled[start : start + self.shapes[name][0]]
            start += len(part)
            value = constant(self.source.config, name)
            if value is None:
                self.largest[name] = _fill(part, self.source.blocks(name), self.source.where(name))
            else:
                part.fill_(value)
        return filled

    def positions(self, warn: Callable[[str], object]) -> torch.Tensor:
        """Read the position table without its offset rows; warn if the pad row looks damaged."""
        table = self.concatenated(POSITIONS)
        if line := pad_row_warning(self.source, table):
            warn(line)
        return table[OFFSET_ROWS:]

    def table(self, name: str, projection: str) -> torch.Tensor:
        """Read an embedding or head table at the decoder's width `[V, H]`; multiply it by its projection if it has one.

        The product is computed in fp32 and rounded once.
        """
        config = self.source.config
        if not config.has_projections:
            return self.concatenated(name)
        right = _Reader(self.source, torch.float32, torch.empty, self.shapes).concatenated(projection)
        right = right.T if projection == PROJECT_IN else right  # [E, H]
        where = f"{self.source.where(name)} times {self.source.where(projection)}"
        folded = self.empty((config.vocab_size, config.hidden_size), dtype=self.dtype)
        _fill(folded, (block.float() @ right for block in self.source.blocks(name)), where)
        return folded


def _fill(target: torch.Tensor, blocks: Iterable[torch.Tensor], where: str) -> float:
    """Copy blocks of rows one below the other and return the largest absolute value; `where` names them in errors."""
    start, largest = 0, 0.0
    for block in blocks:
        largest = max(largest, _check_range(block, target.dtype, where))
        target[start : start + len(block)] = block
        start += len(block)
    assert start == len(target), (start, target.shape)
    return largest


def _head(source: Source) -> str:
    """Return the name of the table for the head: its own, or the embedding if the two are tied."""
    if not source.config.tie_word_embeddings:
        return HEAD
    pairs = zip(source.blocks(HEAD), source.blocks(EMBEDDING), strict=True) if source.has(HEAD) else ()
    if not all(torch.equal(head, embedding.to(head.dtype)) for head, embedding in pairs):
        raise UserError(
            f"{source.where(HEAD)} differs from {source.where(EMBEDDING)}, but config.json has tie_word_embeddings "
            "true (its default); set it to false if the head was trained on its own, else remove the tensor"
        )
    return EMBEDDING


def _check_range(tensor: torch.Tensor, dtype: torch.dtype, where: str) -> float:
    """Refuse NaN, infinity and values that would become infinite in `dtype`; return the largest absolute value."""
    # The extremes show all three, and need no mask in memory.
    low, high = (bound.item() for bound in torch.aminmax(tensor))
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = "NaN" if math.isnan(low) else "infinite values"
        raise UserError(f"{where} holds {bad}: the file is damaged or its training diverged; fetch it again")
    largest = max(-low, high)
    if tensor.dtype != dtype and torch.tensor(largest, dtype=torch.float64).to(dtype).isinf():
        wider = "bfloat16" if dtype == torch.float16 else "float32"
        advice = f"convert with {spelled('dtype')} {wider}"
        raise UserError(f"{where} reaches {largest:.6g}, beyond {str(dtype)[6:]}; {advice}")
    return largest
