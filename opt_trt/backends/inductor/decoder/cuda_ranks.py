"""The decoder of one of several ranks on GPUs, which may be a stage of a pipeline, sum with other ranks, or both.

A rank without other stages is a pipeline of one stage.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from opt_trt.backends.engine import EngineConfig, check_gpu
from opt_trt.backends.inductor.decoder.captured_steps import Capture, CapturedSteps
from opt_trt.backends.inductor.decoder.cuda import context_phase, cuda_forward, gpu_model
from opt_trt.backends.inductor.decoder.pipeline import gather_outputs, micro_batches, run_stage
from opt_trt.backends.inductor.decoder.program_table import replayed_rows
from opt_trt.backends.inductor.decoder.rank_forward import RankForward, StageOutputs, decoder_spec
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.plugins.collectives.links import RankLinks, StageLink
from opt_trt.plugins.cuda.gpu import visible_gpu
from opt_trt.plugins.cuda.graphs import SharedCaptures
from opt_trt.step import StepInputs, StepOutputs

# The fewest packed tokens of a part: an H200 reads the weights in the time that it multiplies some 200 tokens by them.
LEAST_TOKENS = 256


class CudaRankDecoder:
    """`Decoder` of a rank.

    A rank's share of a step that only generates is a captured graph, which contains sums but no messages between
    stages. All ranks capture a step at the same time: they are given the same steps, and the step alone decides.
    """

    def __init__(self, forward: RankForward, capture: Capture, links: RankLinks) -> None:
        self.forward, self._link = forward, links.link
        self.spec = replace(decoder_spec(forward), sharers=links.sharers)
        self._device = forward.model.device
        self._arrived: dict[int, torch.Tensor] = {}  # by number of sequences: hidden states, where a graph reads them
        compute = functools.partial(_compute_stage, forward, links.link, self._arrived)
        self._captured = CapturedSteps(self.spec, self._device, capture, compute)

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`. Rank 0 returns the step's outputs, other ranks a part of them or no rows."""
        rows = replayed_rows(inputs)
        if rows is None:
            parts = micro_batches(inputs, self.forward.stages, LEAST_TOKENS)
            outputs = run_stage(self.forward, self._link, parts, kv_cache)
        else:
            outputs = self._replay_stage(rows, inputs, kv_cache)
        return gather_outputs(self.forward, self._link, outputs, inputs)

    def _replay_stage(self, rows: int, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> list[StageOutputs]:
        """Do what `run_stage` does, by a replay. Stages exchange hidden states of `rows` sequences."""
        link = self._link
        if not link.is_first:
            self._arrived_states(rows).copy_(link.receive(link.expect(rows, self.forward.hidden_size)))
        buffers = self._captured.buffers(rows)
        buffers.load(buffers.packed(inputs))
        result = self._captured.replay(rows, inputs, kv_cache)
        if link.is_last:
            return [StageOutputs(result[: len(inputs.kv_lens)], None)]
        link.send(result)
        return []

    def _arrived_states(self, rows: int) -> torch.Tensor:
        """Return the memory of hidden states that graphs of `rows` sequences read."""
        if rows not in self._arrived:
            shape, dtype = (rows, self.forward.hidden_size), self.spec.kv_dtype
            self._arrived[rows] = torch.empty(shape, dtype=dtype, device=self._device)
        return self._arrived[rows]


def _compute_stage(
    forward: RankForward, link: StageLink, arrived: Mapping[int, torch.Tensor], inputs: StepInputs,
    kv_cache: Sequence[torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """Compute what a graph captures: hidden states for the next stage, or logits in the last stage."""
    x = forward.embed(inputs) if link.is_first else arrived[len(inputs.kv_lens)]
    x = forward.layers(x, inputs, kv_cache)
    return forward.head(x, inputs) if link.is_last else x


class Relaunched:
    """A step that cannot be captured: `replay` launches it anew."""

    def __init__(self, run: Callable[[], torch.Tensor]) -> None:
        self._run = run
        self.result = torch.empty(0)

    def replay(self) -> None:
        """Compute the step again, from what its inputs hold now."""
        self.result = self._run()


def open_cuda_rank(
    engine_dir: Path, config: EngineConfig, options: RuntimeOptions, timeout_s: float
) -> CudaRankDecoder:
    """Open this process's rank of an engine on a GPU of its host, after checking that it was built for such a GPU.

    Every rank must call this, each in its own process of one MPI world; `timeout_s` is how long a rank waits for
    another.
    """
    from opt_trt.plugins.collectives import cuda as gpus  # MPI starts with this import

    gpus.take_gpu()
    check_gpu(engine_dir, config, visible_gpu())
    sizes = config.pretrained_config
    links = gpus.connect(sizes.mapping, getattr(torch, sizes.dtype), timeout_s)
    if links.rank == 0:
        print(links.assignment, file=sys.stderr)
    model = gpu_model(engine_dir, config, links.rank)
    forward = cuda_forward(config, model, context_phase(config, options), links.rank, links.collectives)
    return CudaRankDecoder(forward, SharedCaptures() if links.is_capturable else Relaunched, links)
