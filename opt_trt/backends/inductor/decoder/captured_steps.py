"""Steps that only generate, captured once for each size and replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol
from weakref import ReferenceType, ref

import torch

from opt_trt.backends.inductor.decoder.step_buffers import StepBuffers
from opt_trt.runtime.scheduling.block_pool import blocks_for
from opt_trt.step import DecoderSpec, StepInputs


class Replayable(Protocol):
    """A step that was captured."""

    @property
    def result(self) -> torch.Tensor:
        """The tensor that replays write."""
        ...

    def replay(self) -> None:
        """Compute the step again, from what its inputs hold now."""
        ...


Capture = Callable[[Callable[[], torch.Tensor]], Replayable]
ComputeStep = Callable[[StepInputs, Sequence[torch.Tensor]], torch.Tensor]  # a step, and the KV cache of all layers


class CapturedSteps:
    """Captured steps by their number of sequences, and the buffers that they read.

    The KV cache must lie on the device. If it is another one than before, steps are captured anew.
    """

    def __init__(self, spec: DecoderSpec, device: torch.device, capture: Capture, compute: ComputeStep) -> None:
        """Capture by `capture` what `compute` does; `compute` must not refer to the object that holds this one."""
        self._width, self._device = blocks_for(spec.max_seq_len, spec.tokens_per_block), device
        self._capture, self._compute = capture, compute
        self._buffers: dict[int, StepBuffers] = {}  # by number of sequences
        self._graphs: dict[tuple[int, bool, bool], Replayable] = {}  # by sequences, greedy or not, sampled or not
        self._first_layer: ReferenceType[torch.Tensor] | None = None  # that of the KV cache that graphs use

    def buffers(self, rows: int) -> StepBuffers:
        """Return the buffers of steps that are padded to `rows` sequences."""
        if rows not in self._buffers:
            self._buffers[rows] = StepBuffers(rows, self._width, self._device)
        return self._buffers[rows]

    def replay(self, rows: int, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute the step that the buffers of `rows` hold, padding included. `inputs` say how tokens are chosen."""
        if self._first_layer is None or self._first_layer() is not kv_cache[0]:
            self._graphs.clear()
            self._first_layer = ref(kv_cache[0])  # the session may free it
        draws = inputs.draws is not None
        key = (rows, inputs.greedy, draws)
        if key not in self._graphs:
            there = self._buffers[rows].inputs
            fixed = replace(there, greedy=inputs.greedy, draws=there.draws if draws else None)
            compute = self._compute  # no reference to `self`: a cycle would keep the GPU's memory
            self._graphs[key] = self._capture(lambda: compute(fixed, kv_cache))
        self._graphs[key].replay()
        return self._graphs[key].result
