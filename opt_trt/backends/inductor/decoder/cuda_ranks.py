"""The decoder of one of several ranks on GPUs: it sums with its tensor-parallel group, and hands on what it computes.

A rank without stages beside it is a pipeline of one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from opt_trt.backends.engine import EngineConfig, check_gpu
from opt_trt.backends.inductor.decoder.cuda import Capture, ReplayingDecoder, context_phase, gpu_parts, moved
from opt_trt.backends.inductor.decoder.loading import Parts
from opt_trt.backends.inductor.decoder.pipeline import Found, joined_and_hidden, micro_batches
from opt_trt.backends.inductor.decoder.program_table import replayed_rows
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.plugins.collectives.links import Joined
from opt_trt.plugins.cuda.gpu import visible_gpu
from opt_trt.plugins.cuda.graphs import SharedCaptures
from opt_trt.step import StepInputs, StepOutputs

# Packed tokens of a part at least: reading weights takes an H200 as long as multiplying some 200 tokens by them.
LEAST_TOKENS = 256


class CudaRankDecoder(ReplayingDecoder):
    """`Decoder` of a rank. Of steps that only generate its stage is a graph, sums included; messages are no part of it.

    Ranks capture together: they are given the same steps, and whether one is captured follows from these.
    """

    def __init__(self, config: EngineConfig, parts: Parts, context: str, captured: Capture, joined: Joined) -> None:
        super().__init__(config, parts, context, captured, joined.rank, joined.collectives)
        self.spec = replace(self.spec, sharers=joined.sharers)
        self._link = joined.link
        self._dtype = getattr(torch, config.pretrained_config.dtype)
        self._arrived: dict[int, torch.Tensor] = {}  # by sequences: hidden states, where a graph reads them

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`; the outputs are rank 0's, other ranks return some of them or no rows."""
        rows = replayed_rows(inputs)
        if rows is None:
            found = self._computed(micro_batches(inputs, self._stages, LEAST_TOKENS), kv_cache)
        else:
            found = self._generated(rows, inputs, kv_cache)
        sizes = (self._logits.width(inputs), self._hidden_size)
        joined, hidden = joined_and_hidden(self._link, found, inputs, sizes)
        return self._logits.outputs(joined, inputs, hidden)

    def _computed(self, parts: Sequence[StepInputs], kv_cache: Sequence[torch.Tensor]) -> list[Found]:
        """The stage's share of a step, launch by launch; what it finds if it is the last."""
        link, found = self._link, list[Found]()
        coming = [] if link.is_first else [link.expect(len(p.input_ids), self._hidden_size) for p in parts]
        for index, part in enumerate(moved(part, self._device) for part in parts):
            x = self._embed(part) if link.is_first else link.receive(coming[index])
            x = self._loop(x, part, kv_cache)
            if link.is_last:
                found.append((self._joined(x, part), self._hidden(x, part)))
            else:
                link.send(x)
        return found

    def _generated(self, rows: int, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> list[Found]:
        """The same as a replay, of `rows` sequences between the stages as well."""
        link = self._link
        if not link.is_first:
            if rows not in self._arrived:
                self._arrived[rows] = torch.empty(rows, self._hidden_size, dtype=self._dtype, device=self._device)
            self._arrived[rows].copy_(link.receive(link.expect(rows, self._hidden_size)))
        buffers = self._buffers_of(rows)
        buffers.load(buffers.packed(inputs))
        result = self._replayed(rows, inputs, kv_cache)
        if link.is_last:
            return [(result[: len(inputs.kv_lens)], None)]
        link.send(result)
        return []

    def _whole(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        """What a graph computes."""
        x = self._embed(inputs) if self._link.is_first else self._arrived[len(inputs.kv_lens)]
        x = self._loop(x, inputs, kv_cache)
        return self._joined(x, inputs) if self._link.is_last else x


class Launched:
    """A step that is not captured: it is launched anew instead of replayed."""

    def __init__(self, run: Callable[[], torch.Tensor]) -> None:
        self._run = run
        self.result = torch.empty(0)

    def replay(self) -> None:
        """Compute it again from what its inputs hold now."""
        self.result = self._run()


def open_cuda_rank(
    engine_dir: Path, config: EngineConfig, options: RuntimeOptions, timeout_s: float
) -> CudaRankDecoder:
    """Open this process's rank of an engine on a GPU of its host, after checking that it was built for such a one.

    Every rank must call this, each in a process of one MPI world; `timeout_s` is how long a rank waits for another.
    """
    from opt_trt.plugins.collectives import cuda as gpus  # MPI starts with this import

    gpus.take_gpu()
    check_gpu(engine_dir, config, visible_gpu())
    model = config.pretrained_config
    joined = gpus.connect(model.mapping, getattr(torch, model.dtype), timeout_s)
    if joined.rank == 0:
        print(joined.seats, file=sys.stderr)
    parts = gpu_parts(engine_dir, config, joined.rank)
    captured = SharedCaptures() if joined.is_capturable else Launched
    return CudaRankDecoder(config, parts, context_phase(config, options), captured, joined)
