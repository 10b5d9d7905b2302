"""Turn any source of OPT weights into canonical tensors: TensorRT-LLM's names, one dtype, no oddity left.

q, k and v are merged, the offset rows of the position table dropped, `project_in` and `project_out` folded into the
embedding and the head, a tied head written out. Values are checked: what is not finite is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from opt_trt.errors import UserError
from opt_trt.sources.opt import EMBEDDING, HEAD, OFFSET_ROWS, POSITIONS, PROJECT_IN, PROJECT_OUT, Source, source_shapes

LAYER_PARTS = {  # canonical part: the source's parts, concatenated along output features
    "input_layernorm": ("self_attn_layer_norm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.out_proj",),
    "post_layernorm": ("final_layer_norm",),
    "mlp.fc": ("fc1",),
    "mlp.proj": ("fc2",),
}


def canonical_tensors(
    source: Source, dtype: torch.dtype, empty: Callable[..., torch.Tensor] = torch.empty
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the model once, in `dtype`; one tensor and a block of its source are in memory.

    `empty(shape, dtype=dtype)` makes what a tensor is filled into.
    """
    reader = _Reader(source, dtype, empty)
    yield "transformer.vocab_embedding.weight", reader.table(EMBEDDING, PROJECT_IN)
    yield "transformer.position_embedding.weight", reader.concatenated(POSITIONS)[OFFSET_ROWS:]
    for layer in range(source.config.num_hidden_layers):
        for part, sources in LAYER_PARTS.items():
            for kind in ("weight", "bias"):
                names = [f"decoder.layers.{layer}.{name}.{kind}" for name in sources]
                yield f"transformer.layers.{layer}.{part}.{kind}", reader.concatenated(*names)
    if source.config.has_final_layer_norm:
        for kind in ("weight", "bias"):
            yield f"transformer.ln_f.{kind}", reader.concatenated(f"decoder.final_layer_norm.{kind}")
    yield "lm_head.weight", reader.table(_head(source), PROJECT_OUT)


@dataclass(frozen=True)
class _Reader:
    """Fills tensors of one dtype from the blocks of a source, checking each block on the way."""

    source: Source
    dtype: torch.dtype
    empty: Callable[..., torch.Tensor] = torch.empty

    def concatenated(self, *names: str) -> torch.Tensor:
        """Tensors under one another, along output features."""
        shapes = source_shapes(self.source.config)
        rows = sum(shapes[name][0] for name in names)
        filled = self.empty((rows, *shapes[names[0]][1:]), dtype=self.dtype)
        _fill(filled, ((block, self.source.where(name)) for name in names for block in self.source.blocks(name)))
        return filled

    def table(self, name: str, projection: str) -> torch.Tensor:
        """An embedding or head table at the decoder's width, `[V, H]`: times its projection, if the model has one.

        The product is fp32, rounded once.
        """
        config = self.source.config
        if not config.has_projections:
            return self.concatenated(name)
        right = _Reader(self.source, torch.float32).concatenated(projection)
        right = right.T if projection == PROJECT_IN else right  # [E, H]
        where = f"{self.source.where(name)} times {self.source.where(projection)}"
        folded = self.empty((config.vocab_size, config.hidden_size), dtype=self.dtype)
        _fill(folded, ((block.float() @ right, where) for block in self.source.blocks(name)))
        return folded


def _fill(target: torch.Tensor, blocks: Iterable[tuple[torch.Tensor, str]]) -> None:
    """Copy blocks of rows one under another; each comes with where it is from, for errors."""
    start = 0
    for block, where in blocks:
        _check_range(block, target.dtype, where)
        target[start : start + len(block)] = block
        start += len(block)
    assert start == len(target), (start, target.shape)


def _head(source: Source) -> str:
    """The table the head is made of: its own or, when tied, the embedding."""
    if not source.config.tie_word_embeddings:
        return HEAD
    pairs = zip(source.blocks(HEAD), source.blocks(EMBEDDING), strict=True) if source.has(HEAD) else ()
    if not all(torch.equal(head, embedding.to(head.dtype)) for head, embedding in pairs):
        raise UserError(
            f"{source.where(HEAD)} differs from {source.where(EMBEDDING)}, but config.json has tie_word_embeddings "
            "true (its default); set it to false if the head was trained on its own, else remove the tensor"
        )
    return EMBEDDING


def _check_range(tensor: torch.Tensor, dtype: torch.dtype, where: str) -> None:
    """Refuse NaN, infinity and what would become infinite in `dtype`; the extremes tell, without a mask in memory."""
    low, high = (bound.item() for bound in torch.aminmax(tensor))
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = "NaN" if math.isnan(low) else "infinite values"
        raise UserError(f"{where} holds {bad}: the file is damaged or its training diverged; fetch it again")
    largest = max(-low, high)
    if tensor.dtype != dtype and torch.tensor(largest, dtype=torch.float64).to(dtype).isinf():
        wider = "bfloat16" if dtype == torch.float16 else "float32"
        raise UserError(f"{where} reaches {largest:.6g}, beyond {str(dtype)[6:]}; convert with --dtype {wider}")
