"""All ranks of a GPU's engine in one process, uncompiled, as threads that take turns.

They must take turns because the process has one interpreter of triton.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Barrier, Lock
from typing import Any

import torch

from opt_trt.backends.inductor.decoder.cuda import cuda_forward
from opt_trt.backends.inductor.decoder.cuda_ranks import CudaRankDecoder
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ReferenceCollectives, ReferenceOps
from opt_trt.plugins.collectives.links import GpuAssignment, RankGpu, RankLinks
from opt_trt.runtime.scheduling import kv_cache
from opt_trt.step import StepInputs, StepOutputs
from tests.triton._engine import Eager, Prepared, Rerun

GIVEN, NEXT = ([5, 9, 17, 8], [40, 3, 8, 22, 31, 7]), ([12], [33])  # prompts, and a token that follows each
PATIENCE_S = 60  # a rank that waits longer has lost the others


class Turns:
    """The turns of ranks: one computes at a time, and a rank that waits for others gives its turn away."""

    def __init__(self) -> None:
        self.lock = Lock()

    @contextmanager
    def given_away(self) -> Iterator[None]:
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()


class ThreadGroup:
    """The exchange of a tensor-parallel group of threads."""

    def __init__(self, size: int, turns: Turns) -> None:
        self._barrier, self._turns = Barrier(size), turns
        self._parts = [torch.empty(0)] * size

    def ops(self, tp_rank: int) -> ReferenceOps:
        def exchange(x: torch.Tensor) -> Sequence[torch.Tensor]:
            self._parts[tp_rank] = x
            with self._turns.given_away():
                self._barrier.wait(PATIENCE_S)
                parts = list(self._parts)
                self._barrier.wait(PATIENCE_S)  # before the next parts come
            return parts

        return ReferenceOps(ReferenceCollectives(exchange))


@dataclass
class QueueLink:
    """`StageLink` of a rank, through queues; it keeps the shapes of what it sent."""

    mapping: Mapping
    rank: int
    turns: Turns
    queues: dict[tuple[int, int], Queue[Any]]
    sent: list[tuple[int, ...]]

    def __post_init__(self) -> None:
        stage = self.mapping.pp_rank(self.rank)
        self.is_first, self.is_last = stage == 0, stage == self.mapping.pp_size - 1

    def expect(self, tokens: int, features: int) -> tuple[int, int]:
        return tokens, features

    def receive(self, pending: tuple[int, int]) -> torch.Tensor:
        x = self._take(self.rank - self.mapping.tp_size)
        assert tuple(x.shape) == pending and x.dtype == torch.float16, (x.shape, x.dtype, pending)
        return x

    def send(self, x: torch.Tensor) -> None:
        self.sent.append(tuple(x.shape))
        self.queues[self.rank, self.rank + self.mapping.tp_size].put(x.clone())

    def progress(self) -> None:
        pass

    def answer(self, found: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        output_rank = self.mapping.world_size - self.mapping.tp_size
        if self.is_first and self.is_last:
            return list(found)
        if self.rank == output_rank:
            self.queues[output_rank, 0].put([x.clone() for x in found])
        elif self.rank == 0:
            answers = self._take(output_rank)
            assert [tuple(x.shape) for x in answers] == list(shapes), (answers, shapes)
            return answers
        return [torch.empty(0, features) for _, features in shapes]

    def _take(self, source: int) -> Any:
        with self.turns.given_away():
            return self.queues[source, self.rank].get(timeout=PATIENCE_S)


class Ranks:
    """`Decoder` of all ranks of a checkpoint, each with a KV cache of its own."""

    def __init__(self, checkpoint: Path, context: str, device: str, **flags: object) -> None:
        first = Prepared(checkpoint, 0, **flags)
        mapping, self._turns = first.limits.model.mapping, Turns()
        queues: dict[tuple[int, int], Queue[Any]] = {
            (a, b): Queue() for a in range(mapping.world_size) for b in range(mapping.world_size)
        }
        groups = [ThreadGroup(mapping.tp_size, self._turns) for _ in range(mapping.pp_size)]
        assignment = GpuAssignment(tuple(RankGpu("here", rank, f"gpu {rank}") for rank in range(mapping.world_size)))
        self.ranks: list[CudaRankDecoder] = []
        self.programs: list[dict[str, Eager]] = []
        self.captured: list[list[Rerun]] = [[] for _ in range(mapping.world_size)]
        self.links = [QueueLink(mapping, rank, self._turns, queues, []) for rank in range(mapping.world_size)]
        for rank, link in enumerate(self.links):
            ops = groups[mapping.pp_rank(rank)].ops(mapping.tp_rank(rank))
            prepared = Prepared(checkpoint, rank, **flags)
            programs = prepared.programs(device, ops)
            links = RankLinks(rank, assignment, ops, link)
            capture = capturing(self.captured[rank])
            forward = cuda_forward(prepared.config, prepared.model(programs, device), context, rank, ops)
            self.ranks.append(CudaRankDecoder(forward, capture, links))
            self.programs.append(programs)
        self.spec = self.ranks[0].spec
        self._caches: dict[int, list[list[torch.Tensor]]] = {}

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        if id(kv_cache[0]) not in self._caches:
            blocks = kv_cache[0].shape[0]
            self._caches[id(kv_cache[0])] = [kv_cache_of(rank, blocks) for rank in self.ranks]
        caches = self._caches[id(kv_cache[0])]

        def run(rank: int) -> StepOutputs:
            with self._turns.lock:
                return self.ranks[rank].step(inputs, caches[rank])

        with ThreadPoolExecutor(len(self.ranks)) as pool:
            leaders, *_ = pool.map(run, range(len(self.ranks)))
        return leaders


def kv_cache_of(decoder: CudaRankDecoder, blocks: int) -> list[torch.Tensor]:
    return kv_cache.allocate(decoder.spec, blocks)


def capturing(captured: list[Rerun]) -> Any:
    """Return a function that captures steps of a rank and appends them to `captured`."""

    def capture(run: Any) -> Rerun:
        captured.append(Rerun(run))
        return captured[-1]

    return capture
