"""The decoder of a GPU's engine without a GPU: programs that sum tokens, and work that is done at once or later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from opt_trt.backends.engine import EngineConfig, Limits
from opt_trt.backends.inductor.decoder.cuda import CudaDecoder, cuda_forward
from opt_trt.backends.inductor.decoder.loading import RankModel
from opt_trt.backends.inductor.decoder.program_table import CONTEXT, CudaProgramTable
from opt_trt.backends.inductor.decoder.step_buffers import NO_SLOT
from opt_trt.config.scheduling import Scheduling
from opt_trt.model.config import ModelConfig
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.unit._engines import MODEL

BLOCK, VOCAB = 4, 16


class AtOnce:
    """A queue of work that is done at once, as on a CPU."""

    def __call__(self, work: Callable[[], object]) -> AtOnce:
        work()
        return self

    def synchronize(self) -> None:
        """Do nothing: no work is left."""


@dataclass
class Later:
    """A queue of work as on the slowest GPU: work is done only when it is waited for, and no more than necessary.

    A test that computes on the CPU meanwhile must call `finish` first, so that it does not overtake waiting work.
    """

    log: list[str] = field(default_factory=list)  # what was queued, done and waited for, in order
    _waiting: deque[tuple[int, Callable[[], object]]] = field(default_factory=deque)
    _count: int = 0

    def __call__(self, work: Callable[[], object]) -> End:
        number, self._count = self._count, self._count + 1
        self.log.append(f"put {number}")
        self._waiting.append((number, work))
        return End(self, number)

    def finish(self, last: int | None = None) -> None:
        """Do all queued work, or the work up to a number."""
        while self._waiting and (last is None or self._waiting[0][0] <= last):
            number, work = self._waiting.popleft()
            work()
            self.log.append(f"done {number}")


@dataclass(frozen=True)
class End:
    """`Completion` of work that is done later."""

    queue: Later
    number: int

    def synchronize(self) -> None:
        self.queue.log.append(f"wait {self.number}")
        self.queue.finish(self.number)


class Rerun:
    """A stand-in for a captured graph: it computes anew from the same inputs, into the same memory."""

    def __init__(self, run: Callable[[], torch.Tensor]) -> None:
        self._run = run
        self.result = torch.full_like(run(), torch.nan)
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.result.copy_(self._run())


class Embedding:
    """A program that returns tokens and their positions: int64 `[T, 2]`."""

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs[:2], 1)


class Sum:
    """A program that appends to its input the sum of a sequence's tokens up to each, read back from the KV cache.

    Keys are tokens, values positions, which must come back as 0, 1, 2, …: a slot, block or length that is wrong, or a
    write that should not be seen, gives another sum.
    """

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        x, cache, slots, starts, lens, tables = inputs
        written = slots != NO_SLOT
        at = slots[written] // BLOCK, slots[written] % BLOCK
        cache[at[0], 0, 0, at[1], 0], cache[at[0], 1, 0, at[1], 0] = x[written, 0].float(), x[written, 1].float()
        sums = torch.zeros(len(x), dtype=torch.int64)
        for row, (start, end) in enumerate(pairwise(starts.tolist())):
            if not written[start]:
                continue
            length = int(lens[row])
            tokens, positions = cache[tables[row].long(), :, 0, :, 0].transpose(0, 1).reshape(2, -1)[:, :length]
            assert positions.tolist() == list(range(length)), (row, positions)
            sums[start:end] = tokens.cumsum(0)[length - (end - start) :].long()
        return torch.cat((x[:, :2], sums[:, None]), 1)


class Head:
    """A program that returns logits: the largest is at the sum modulo the vocabulary, and all are different."""

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        x, wanted, _ = inputs
        places = (torch.arange(VOCAB) - x[wanted, 2:]) % VOCAB
        return 3.0 - 0.7 * places.float()


def sum_decoder(
    put: Any, captured: list[Rerun] | None = None, max_batch_size: int = 4, max_num_tokens: int = 32
) -> CudaDecoder:
    """Return a decoder whose next token is the sum modulo the vocabulary; prompts have 16 tokens, sequences 24."""
    plain = {"do_layer_norm_before": False}  # hidden states are the outputs of the last layer
    sizes = ModelConfig.from_dict(MODEL | plain | {"max_position_embeddings": 24}, "here")
    limits = Limits(max_batch_size, 16, 24, max_num_tokens, BLOCK, True, True)
    config = EngineConfig(sizes, limits, "inductor", {"type": "cuda"}, "", {}, "")
    kinds = {"embedding": Embedding(), "layer": Sum(), "head": Head()}
    programs = {name: kinds[name.split("_")[0]] for name in CudaProgramTable.of(sizes, limits).names()}
    reruns = [] if captured is None else captured

    def capture(run: Callable[[], torch.Tensor]) -> Rerun:
        reruns.append(Rerun(run))
        return reruns[-1]

    layers: list[list[torch.Tensor]] = [[]] * sizes.num_hidden_layers
    model = RankModel(programs, [], layers, [torch.empty(0)])
    return CudaDecoder(cuda_forward(config, model, CONTEXT), capture, put)


def session_of(decoder: CudaDecoder, max_tokens: int | None = None, rules: Scheduling | None = None) -> DecoderSession:
    """Return a session over the decoder, with a pool of so many tokens."""
    return DecoderSession(decoder, KvCacheLimit(max_tokens), rules)


def predictions(decoder: CudaDecoder) -> Sequence[bool]:
    """Return whether each of the last predictions missed."""
    return decoder._lookahead._hit_rate._missed
