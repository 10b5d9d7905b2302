"""Slots: each sequence has a row of every cache. A step is cut into runs of the engine, which see one slot or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch

from opt_trt.backends.engine import EngineConfig, engine_spec
from opt_trt.backends.tensorrt.bindings import (
    GENERATION,
    INPUT_IDS,
    POSITION_IDS,
    PROMPT,
    WANTED,
    WRITE_INDICES,
    EngineShape,
)
from opt_trt.backends.tensorrt.engine_shape import engine_shape
from opt_trt.step import DecoderSpec, StepInputs


@dataclass(frozen=True)
class SlotSpec(DecoderSpec):
    """A decoder whose blocks are slots: `tokens_per_block` is `max_seq_len`, so that a sequence has exactly one.

    Keys and values are caches of their own, so that `num_layers` counts two for each layer.
    """

    shape: EngineShape = field(default_factory=lambda: EngineShape(0, 0, 0, 0))

    def kv_block_bytes(self) -> int:
        """Return the bytes of a slot over all caches."""
        return self.num_layers * prod(self.kv_shape(1)) * self.kv_dtype.itemsize

    def kv_shape(self, num_blocks: int) -> tuple[int, ...]:
        """Return the shape of a cache, `[slots, heads, capacity, head_size]`."""
        return (num_blocks, self.num_heads, self.shape.capacity, self.head_size)

    @property
    def scratch(self) -> int:
        """The row of a slot that no sequence reaches: idle rows of a run write to it."""
        return self.shape.capacity - 1


def slot_spec(config: EngineConfig, device: str) -> SlotSpec:
    """Describe an engine to a session."""
    shape = engine_shape(config.pretrained_config, config.build_config)
    plain = engine_spec(config, 2 * config.pretrained_config.num_hidden_layers, device)
    own = {"tokens_per_block": plain.max_seq_len, "block_option": "max_seq_len", "draws": True, "shape": shape}
    return SlotSpec(**(vars(plain) | own))


class Span(NamedTuple):
    """The new tokens of a sequence, packed tokens `first` to before `end`."""

    slot: int
    first: int
    end: int


@dataclass(frozen=True)
class SlotRun:
    """A run of the engine, on rows `slots` of the caches."""

    profile: int
    slots: slice
    feeds: dict[str, torch.Tensor]  # int32, on the CPU
    tokens: tuple[int, ...]  # the packed tokens of its first rows of output; further rows are padding


def begun(inputs: StepInputs) -> list[int]:
    """Return the slots of sequences that begin in this step."""
    firsts = inputs.position_ids[inputs.query_start[:-1].long()]
    return inputs.block_tables[:, 0][firsts == 0].tolist()


def cut(inputs: StepInputs, spec: SlotSpec, num_slots: int) -> list[SlotRun]:
    """Cut a step into runs: one for all single tokens, and for each longer chunk one or, if it is too long, several.

    Each token that the step wants an output of is a row of one run.
    """
    wanted = _wanted(inputs)
    spans = _spans(inputs)
    single = [span for span in spans if span.end - span.first == 1]
    longer = [span for span in spans if span.end - span.first > 1]
    runs = [_generation(single, inputs, wanted, spec, num_slots)] if single else []
    return runs + [_prompt(piece, inputs, wanted) for span in longer for piece in _pieces(span, spec.shape.most_tokens)]


def rows_for(slots: int, num_slots: int) -> int:
    """Return the rows of a run over `slots` slots: a power of two, so that shapes are few, but no more than there are.

    Kernels are compiled, and graphs captured, for each number of rows.
    """
    return min(1 << (slots - 1).bit_length(), num_slots)


def _generation(
    single: Sequence[Span], inputs: StepInputs, wanted: frozenset[int], spec: SlotSpec, num_slots: int
) -> SlotRun:
    """Return the run of sequences with one token each; the slots between them are idle, and so is the padding."""
    rows = rows_for(1 + max(span.slot for span in single), num_slots)
    slots, packed = [span.slot for span in single], [span.first for span in single]
    ids, positions = torch.full((rows, 1), spec.pad_id), torch.zeros(rows, 1, dtype=torch.int64)
    writes = torch.full((rows,), spec.scratch)
    ids[slots, 0], positions[slots, 0] = inputs.input_ids[packed], inputs.position_ids[packed]
    writes[slots] = inputs.position_ids[packed]
    tokens = [span for span in single if span.first in wanted]
    selected = [span.slot for span in tokens] + [0] * (rows - len(tokens))
    feeds = _feeds(ids, positions, writes, selected)
    return SlotRun(GENERATION, slice(0, rows), feeds, tuple(span.first for span in tokens))


def _prompt(span: Span, inputs: StepInputs, wanted: frozenset[int]) -> SlotRun:
    """Return the run of one sequence with several tokens."""
    packed = slice(span.first, span.end)
    tokens = tuple(token for token in range(span.first, span.end) if token in wanted)
    ids, positions = inputs.input_ids[None, packed], inputs.position_ids[None, packed]
    selected = [token - span.first for token in tokens] or [0]  # an engine computes at least one row of logits
    feeds = _feeds(ids, positions, positions[:, 0], selected)
    return SlotRun(PROMPT, slice(span.slot, span.slot + 1), feeds, tokens)


def _feeds(
    ids: torch.Tensor, positions: torch.Tensor, writes: torch.Tensor, wanted: list[int]
) -> dict[str, torch.Tensor]:
    named = {INPUT_IDS: ids, POSITION_IDS: positions, WRITE_INDICES: writes, WANTED: torch.tensor(wanted)}
    return {name: tensor.int() for name, tensor in named.items()}


def _pieces(span: Span, most: int) -> Iterator[Span]:
    for first in range(span.first, span.end, most):
        yield span._replace(first=first, end=min(first + most, span.end))


def _spans(inputs: StepInputs) -> list[Span]:
    slots = inputs.block_tables[:, 0].tolist()
    return [Span(slot, *ends) for slot, ends in zip(slots, pairwise(inputs.query_start.tolist()), strict=True)]


def _wanted(inputs: StepInputs) -> frozenset[int]:
    """Return the packed tokens whose logits or hidden states are wanted."""
    hidden = inputs.hidden_token_ids
    return frozenset(inputs.last_token_ids.tolist() + ([] if hidden is None else hidden.tolist()))
