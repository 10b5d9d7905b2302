"""One row of tokens in flight: its part of the KV cache and its output so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Protocol

from opt_trt.runtime.request import FinishReason, Request, TokenEvent, TokenLogProbs
from opt_trt.runtime.stopping import Stop, StopWatch

if TYPE_CHECKING:  # the scheduler is plain Python: it must import without torch
    import torch


class RandomNumbers:
    """Numbers from `[0, 1)` that depend on the seed alone: looking ahead does not change them."""

    def __init__(self, seed: str) -> None:
        self._generator = Random(seed)
        self._seen: deque[float] = deque()

    def random(self) -> float:
        """Return the next number and use it up."""
        return self._seen.popleft() if self._seen else self._generator.random()

    def coming(self, count: int) -> tuple[float, ...]:
        """Return the next `count` numbers without using them up."""
        while len(self._seen) < count:
            self._seen.append(self._generator.random())
        return tuple(self._seen)[:count]


class Search(Protocol):
    """The way one request chooses among several rows: beams or candidates."""

    def advance(self, logits: torch.Tensor, rows: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Take the rows' fp32 logits `[R, V]`, and return the rows of the next step."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """A finished output and its score: its log-probability over its number of tokens to the length penalty."""

    sequence: TokenSequence
    score: float


@dataclass(eq=False)
class TokenSequence:
    """A request in flight. All its tokens but the newest are in the KV cache once the context phase is over."""

    index: int
    request: Request
    events: deque[TokenEvent] | None = None  # receives its tokens as they come
    is_watched: bool = False  # its tokens are waited for one by one, not as a whole output
    caller: object = None  # callers take turns when their sequences wait
    blocks: tuple[int, ...] = ()
    num_cached: int = 0  # tokens in the KV cache
    reserved: int = 0  # blocks it is sure to get, including those it has; 0 if it may have to start over
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: BaseException | None = None  # why it cannot go on; the step that sets this gave it no token
    stop: Stop | None = None
    log_probs: list[TokenLogProbs] = field(default_factory=list)
    prompt_log_probs: list[TokenLogProbs] = field(default_factory=list)
    context_logits: list[torch.Tensor] = field(default_factory=list)  # one part per step of the context phase
    generation_logits: list[torch.Tensor] = field(default_factory=list)
    hidden: list[torch.Tensor] = field(default_factory=list)  # states `[n, E]` of the tokens of each step, if needed
    leader: TokenSequence | None = (
        None  # of a beam or candidate: the sequence that computed the prompt and stands for the request
    )
    search: Search | None = None  # set for a leader only
    hypotheses: Sequence[Hypothesis] = ()  # the outputs of a finished beam search, best first

    @property
    def num_tokens(self) -> int:
        """The number of prompt and new tokens so far."""
        return len(self.request.prompt_ids) + len(self.output_ids)

    @property
    def num_left(self) -> int:
        """The number of tokens to compute before it gets a new one."""
        return self.num_tokens - self.num_cached

    @property
    def num_rows(self) -> int:
        """The number of rows of a step it may need: those of its whole search if it stands for the request."""
        return 1 if self.leader else self.request.sampling.num_rows

    def chunk(self, count: int) -> Chunk:
        """Return its next `count` tokens."""
        return Chunk(self, self.num_cached, self.num_cached + count, is_last=count == self.num_left)

    def fork(self) -> TokenSequence:
        """Return a beam or candidate that goes on from here. It names the same blocks without owning them."""
        leader = self.leader or self
        return TokenSequence(
            leader.index, leader.request, blocks=self.blocks, num_cached=self.num_cached, reserved=leader.reserved,
            output_ids=[*self.output_ids], log_probs=[*self.log_probs], leader=leader,
        )  # fmt: skip

    def ids(self, start: int, end: int) -> list[int]:
        """Return its tokens at positions from `start` to before `end`."""
        prompt_len = len(self.request.prompt_ids)
        if start >= prompt_len:  # in every step of the generation phase
            return self.output_ids[start - prompt_len : end - prompt_len]
        output = self.output_ids[max(0, start - prompt_len) : max(0, end - prompt_len)]
        return [*self.request.prompt_ids[start:end], *output]

    @cached_property
    def random(self) -> RandomNumbers:
        """Its own random numbers, which depend on its seed alone, not on what runs beside it."""
        return RandomNumbers(f"{self.request.sampling.random_seed}/{self.request.sampling.sequence}")

    @cached_property
    def _stop_watch(self) -> StopWatch | None:
        words = self.request.stop_words
        return None if words is None else StopWatch(words, self.request.sampling.min_length)

    def accept(self, token_id: int) -> None:
        """Take a new token. The end id, a stop word, or the last token requested finishes the sequence."""
        self.output_ids.append(token_id)
        is_last = len(self.output_ids) >= self.request.max_new_tokens
        self.stop = self._stop_watch.look(self.output_ids, is_last) if self._stop_watch else None
        if token_id in self.request.end_ids and len(self.output_ids) > self.request.sampling.min_length:
            self.finish_reason, self.stop = "end_id", None
        elif self.stop is not None:
            self.finish_reason = "stop_words"
        elif is_last:
            self.finish_reason = "length"

    def fail(self, error: BaseException) -> None:
        """Finish without a token. `RequestFailed` is this sequence's own error, others are those of a whole step."""
        self.finish_reason, self.error = "failed", error


@dataclass(frozen=True)
class Chunk:
    """The tokens of a sequence in a step, from `start` to before `end`. A new token follows the last chunk."""

    sequence: TokenSequence
    start: int
    end: int
    is_last: bool  # its end is the end of the sequence so far

    @property
    def num_tokens(self) -> int:
        """The number of tokens it packs into the step."""
        return self.end - self.start

    @property
    def is_final(self) -> bool:
        """True if the token that comes after it is the last one requested."""
        return self.is_last and self.end + 1 >= self.sequence.request.max_tokens

    @property
    def has_hidden(self) -> bool:
        """True if the hidden state of every token is needed."""
        return self.sequence.request.sampling.penalty_alpha > 0

    @property
    def has_context_logits(self) -> bool:
        """True if the logits of every token are needed."""
        return self.sequence.request.return_context_logits and self.start < len(self.sequence.request.prompt_ids)
