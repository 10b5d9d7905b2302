"""OPT as a TensorRT network, from a rank of a checkpoint; caches have a row for each sequence.

The compiler fuses attention, reads caches in place and keeps weights narrow for this form of the network only: named
dimensions, one product for queries, keys and values, gathers with indices of one axis, a mask computed from positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opt_trt.backends.tensorrt.bindings import (
    HIDDEN,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    WANTED,
    WRITE_INDICES,
    EngineShape,
    cache_output,
    layer_caches,
)  # fmt: skip
from opt_trt.backends.tensorrt.constants import Constants, ModelConstants
from opt_trt.backends.tensorrt.inputs import add_inputs, input_table
from opt_trt.backends.tensorrt.library import Library
from opt_trt.backends.tensorrt.primitives import Primitives
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.model.config import ModelConfig
from opt_trt.quant.mode import QuantMode

MASKED = {torch.float16: -1e4, torch.bfloat16: -1e30, torch.float32: -1e30}  # the score of an unseen key
VOCABULARY, POSITIONS = "transformer.vocab_embedding.weight", "transformer.position_embedding.weight"
HEADS_FIRST = (0, 2, 1, 3)  # [B, S, H, D] → [B, H, S, D], and back


def add_decoder(
    library: Library,
    network: Any,
    checkpoint: Checkpoint,
    shape: EngineShape,
    logits_dtype: str = "float32",
    head_mode: QuantMode | None = None,
    directory: Path | None = None,
) -> Constants:
    """Add a rank's decoder to an empty network. Its constants must live until the network is built.

    `head_mode` quantizes the head; without it the head is as the checkpoint has it. `directory` is where constants that
    the checkpoint does not hold lie; they have no names there.
    """
    constants = Constants(library, network, directory)
    model = ModelConstants(constants, checkpoint, head_mode)
    inputs = add_inputs(library, network, input_table(checkpoint.config, shape))
    decoder = _Decoder(checkpoint.config, model, Primitives(library, network, constants), inputs)
    outputs = decoder.outputs(shape.capacity, getattr(torch, logits_dtype))
    for name, tensor in outputs.items():
        tensor.name = name
        network.mark_output(tensor)
    return constants


@dataclass(frozen=True)
class _Shared:
    """The tensors that all layers read."""

    seen: Any  # bool [B, 1, S, C]: whether a token sees a key
    masked: Any  # the score of other keys
    query_scale: Any  # in fp32: a rounded one would change all scores alike
    parts: tuple[Any, ...]  # the places of queries, keys and values in their common product


class _Decoder:
    """The decoder of a rank. Methods add layers to the network and return their output."""

    def __init__(self, config: ModelConfig, model: ModelConstants, ops: Primitives, inputs: dict[str, Any]) -> None:
        self._config, self._model, self._ops, self._inputs = config, model, ops, inputs
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._caches: dict[str, Any] = {}  # after the step, by the name of the output

    def outputs(self, capacity: int, logits_dtype: torch.dtype) -> dict[str, Any]:
        """Add the decoder; return its outputs by name."""
        vocabulary = self._model.table(VOCABULARY)
        x, shared = self._embedding(vocabulary), self._shared(capacity)
        for layer in range(self._config.num_hidden_layers):
            x = self._layer(layer, x, shared)
        hidden, ops = self._wanted(x), self._ops.within("head")
        logits = ops.matmul("product", hidden, *self._model.head((VOCABULARY, vocabulary)))
        logits = ops.first_columns("cut", logits, self._model.vocabulary_size)
        return {LOGITS: ops.cast("rounded", logits, logits_dtype), HIDDEN: hidden} | self._caches

    def _embedding(self, vocabulary: Any) -> Any:
        """Return the sum of both tables' rows [B, S, E]."""
        ops = self._ops.within("embedding")
        tokens = ops.gather("tokens", vocabulary, self._inputs[INPUT_IDS], 0)
        positions = ops.gather("positions", self._model.table(POSITIONS), self._inputs[POSITION_IDS], 0)
        return ops.add("sum", tokens, positions)

    def _shared(self, capacity: int) -> _Shared:
        ops, (masked, scale) = self._ops.within("shared"), (MASKED[self._dtype], self._config.head_size**-0.5)
        keys = ops.constant("keys", torch.arange(capacity, dtype=torch.int32).view(1, 1, 1, -1))
        one = ops.constant("one", torch.ones(1, 1, 1, 1, dtype=torch.int32))
        axes = ops.constant("axes", torch.tensor([1, 3], dtype=torch.int32))
        limit = ops.add("limit", ops.unsqueeze("positions", self._inputs[POSITION_IDS], axes), one)
        return _Shared(
            seen=ops.less("seen", keys, limit),
            masked=ops.constant("masked", torch.full((1, 1, 1, 1), masked, dtype=self._dtype)),
            query_scale=ops.constant("query_scale", torch.full((1, 1, 1, 1), scale)),
            parts=tuple(ops.constant(f"part_{n}", torch.tensor([n], dtype=torch.int32)) for n in range(3)),
        )

    def _layer(self, layer: int, x: Any, shared: _Shared) -> Any:
        """Return hidden states [B, S, E] behind a layer."""
        name = f"transformer.layers.{layer}"
        norm1, norm2 = self._norm(f"{name}.input_layernorm"), self._norm(f"{name}.post_layernorm")
        before, after = (norm1, norm2), (_same, _same)
        if not self._config.do_layer_norm_before:
            before, after = after, before
        h = self._linear(f"{name}.attention.qkv", before[0](x))
        x = after[0](self._row_parallel(f"{name}.attention.dense", self._attention(layer, h, shared), x))
        h = self._linear(f"{name}.mlp.fc", before[1](x))
        h = self._ops.within(name).activation("mlp.activation", h, self._config.hidden_act)
        return after[1](self._row_parallel(f"{name}.mlp.proj", h, x))

    def _attention(self, layer: int, qkv: Any, shared: _Shared) -> Any:
        """Append keys and values of `qkv` [B, S, 3 * H * D] to the caches; return what all heads see [B, S, H * D]."""
        ops = self._ops.within(f"transformer.layers.{layer}.attention")
        heads, head_size = self._config.local_heads, self._config.head_size
        split = ops.reshape("split", qkv, (0, 0, 3, heads * head_size))
        query, key, value = (
            ops.reshape(f"{part}.heads", ops.gather(part, split, place, 2), (0, 0, heads, head_size), after=HEADS_FIRST)
            for part, place in zip(("query", "key", "value"), shared.parts, strict=True)
        )
        keys, values = (self._append(name, x) for name, x in zip(layer_caches(layer), (key, value), strict=True))
        context = self._attend(ops, self._scaled(ops, query, shared.query_scale), keys, values, shared)
        return ops.reshape("joined", context, (0, 0, heads * head_size), before=HEADS_FIRST)

    def _attend(self, ops: Primitives, query: Any, keys: Any, values: Any, shared: _Shared) -> Any:
        """Return what each head sees [B, H, S, D]."""
        scores = ops.matmul("scores", query, keys, transpose_y=True)
        weights = ops.softmax("weights", ops.select("masked", shared.seen, scores, shared.masked), axis=3)
        return ops.matmul("context", weights, values, transpose_y=False)

    def _scaled(self, ops: Primitives, query: Any, scale: Any) -> Any:
        wide = ops.multiply("query.scaled", ops.cast("query.wide", query, torch.float32), scale)
        return ops.cast("query.rounded", wide, self._dtype)

    def _append(self, cache: str, x: Any) -> Any:
        """Return a cache with new rows, which is also an output of the network."""
        output = cache_output(cache)
        self._caches[output] = self._ops.append(output, self._inputs[cache], x, self._inputs[WRITE_INDICES])
        return self._caches[output]

    def _linear(self, name: str, x: Any) -> Any:
        """Return `x @ weight.T + bias`."""
        return self._ops.add(f"{name}.biased", self._product(name, x), self._model.vector(f"{name}.bias", 3))

    def _row_parallel(self, name: str, x: Any, residual: Any) -> Any:
        """Return the product of features that are split over ranks, plus bias and residual, which are added once."""
        product, ranks = self._product(name, x), self._config.mapping.tp_size
        if ranks > 1:
            product = self._ops.all_reduce(f"{name}.total", product, ranks)
        biased = self._ops.add(f"{name}.biased", product, self._model.vector(f"{name}.bias", 3))
        return self._ops.add(f"{name}.residual", biased, residual)

    def _product(self, name: str, x: Any) -> Any:
        return self._ops.matmul(f"{name}.product", x, *self._model.linear(f"{name}.weight"))

    def _norm(self, name: str, rank: int = 3) -> Callable[[Any], Any]:
        """Return the layer norm of the last of `rank` axes."""
        scale, bias = (self._model.vector(f"{name}.{kind}", rank) for kind in ("weight", "bias"))
        return lambda x: self._ops.layer_norm(name, x, scale, bias, self._config.norm_epsilon)

    def _wanted(self, x: Any) -> Any:
        """Return what the head multiplies [L, E]: the wanted tokens of `x` [B, S, E], behind the last norm."""
        ops = self._ops.within("head")
        rows = ops.reshape("rows", x, (-1, self._config.hidden_size))
        wanted = ops.gather("wanted", rows, self._inputs[WANTED], 0)
        return self._norm("transformer.ln_f", rank=2)(wanted) if self._config.has_final_layer_norm else wanted


def _same(x: Any) -> Any:
    return x
