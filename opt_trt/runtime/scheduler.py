"""Which sequences take part in the next step: in-flight batching, first come first served, no eviction."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

from opt_trt.errors import UserError
from opt_trt.runtime.block_pool import BlockPool, blocks_for
from opt_trt.runtime.request import FinishReason, Request, RequestFailed, TokenLogProbs
from opt_trt.runtime.stopping import Stop, StopWatch

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class TokenSequence:
    """A request in flight: its blocks and what it produced so far."""

    index: int
    request: Request
    blocks: tuple[int, ...] = ()
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop: Stop | None = None
    error: RequestFailed | None = None  # why it cannot go on; it got no token in the step that says so
    log_probs: list[TokenLogProbs] = field(default_factory=list)
    context_logits: torch.Tensor | None = None
    generation_logits: list[torch.Tensor] = field(default_factory=list)

    @cached_property
    def random(self) -> Random:
        """Its own random numbers: they depend on its seed alone, not on what runs beside it."""
        return Random(f"{self.request.sampling.random_seed}/{self.request.sampling.sequence}")

    @cached_property
    def _stop_watch(self) -> StopWatch | None:
        words = self.request.stop_words
        return None if words is None else StopWatch(words, self.request.sampling.min_length)

    def accept(self, token_id: int) -> None:
        """Take a new token; the end id, a stop word, or the last token asked for, finishes the sequence."""
        self.output_ids.append(token_id)
        self.stop = self._stop_watch.look(self.output_ids) if self._stop_watch else None
        if token_id == self.request.end_id:
            self.finish_reason, self.stop = "end_id", None
        elif self.stop is not None:
            self.finish_reason = "stop_words"
        elif len(self.output_ids) == self.request.max_new_tokens:
            self.finish_reason = "length"

    def fail(self, problem: str) -> None:
        """Finish without a token; sequences beside it are not to blame."""
        self.finish_reason, self.error = "failed", RequestFailed(self.index, problem)


@dataclass(frozen=True)
class StepLimits:
    """The most one step may hold, and the size of a block in tokens."""

    max_batch_size: int
    max_num_tokens: int
    tokens_per_block: int


class Scheduler:
    """Sequences wait, run, and leave between steps.

    A sequence is admitted only when blocks for its prompt and all its new tokens are free, so that whoever runs can
    finish. `running` is in order of admission. The pool may be shared with other schedulers.
    """

    def __init__(self, limits: StepLimits, pool: BlockPool) -> None:
        self.limits = limits
        self.running: list[TokenSequence] = []
        self._pool = pool
        self._waiting: deque[TokenSequence] = deque()

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not finished."""
        return bool(self.running or self._waiting)

    def submit(self, sequence: TokenSequence) -> None:
        """Queue a sequence that fits an empty batch and an empty pool."""
        self._waiting.append(sequence)

    def admit(self) -> Sequence[TokenSequence]:
        """Let waiting sequences join, in order, while the step has room; they are in the context phase.

        Every sequence that runs already brings one token. `UserError` if nothing runs and nothing can join, because
        other schedulers hold the pool.
        """
        joined: list[TokenSequence] = []
        tokens_left = self.limits.max_num_tokens - len(self.running)
        while self._waiting and len(self.running) < self.limits.max_batch_size:
            prompt_len = len(self._waiting[0].request.prompt_ids)
            blocks_needed = blocks_for(self._waiting[0].request.max_tokens, self.limits.tokens_per_block)
            if prompt_len > tokens_left or blocks_needed > self._pool.num_free:
                break
            sequence = self._waiting.popleft()
            sequence.blocks = self._pool.take(blocks_needed)
            tokens_left -= prompt_len
            joined.append(sequence)
            self.running.append(sequence)
        if not self.running and self._waiting:
            raise UserError("the KV cache is taken by another stream of this session; exhaust or close that one first")
        return joined

    def cancel(self, index: int) -> None:
        """Forget a waiting sequence, finish a running one: `retire` frees its blocks."""
        self._waiting = deque(s for s in self._waiting if s.index != index)
        for sequence in self.running:
            if sequence.index == index:
                sequence.finish_reason = "cancelled"

    def retire(self) -> list[int]:
        """Free the blocks of finished sequences; the rows of `running` that stay, in order."""
        stay = [row for row, sequence in enumerate(self.running) if sequence.finish_reason is None]
        if len(stay) < len(self.running):
            for sequence in self.running:
                if sequence.finish_reason is not None:
                    self._pool.give_back(sequence.blocks)
            self.running = [self.running[row] for row in stay]
        return stay

    def clear(self) -> None:
        """Drop everything, running or waiting, and free its blocks."""
        for sequence in self.running:
            self._pool.give_back(sequence.blocks)
        self.running = []
        self._waiting.clear()
