"""The requests a session gets and the results it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from opt_trt.config.sampling import GREEDY, PENALTIES, Sampling
from opt_trt.errors import UserError
from opt_trt.runtime.stopping import Stop, StopWords

if TYPE_CHECKING:  # the scheduler is plain Python: it must import without torch
    import torch


FinishReason = Literal["end_id", "stop_words", "length", "cancelled", "failed"]


class RequestFailed(UserError):
    """One request cannot be served or cannot go on; the requests beside it are not affected."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"prompt {index} {problem}")
        self.index = index
        self.problem = problem

    def as_spelled(self, spell: Callable[[str], str]) -> RequestFailed:
        """See `UserError.as_spelled`."""
        return RequestFailed(self.index, UserError(self.problem).render(spell))

    def __reduce__(self) -> tuple[type[RequestFailed], tuple[int, str]]:
        return type(self), (self.index, self.problem)


def blamed(index: int, error: Exception) -> RequestFailed:
    """Return the error of a request by which something raised that no check foresaw."""
    if isinstance(error, RequestFailed):
        return error
    reason = error.text if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return RequestFailed(index, f"failed: {reason}")


@dataclass(frozen=True)
class Request:
    """A prompt to be continued by at most `max_new_tokens` tokens, chosen as `sampling` says.

    End ids are looked for in new tokens only (OPT begins a prompt with the token that ends it); without any, only the
    length ends it. `end_id` is the one that TensorRT-LLM leaves out of its outputs.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    end_id: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    sampling: Sampling = GREEDY
    stop_words: StopWords | None = None
    further_end_ids: tuple[int, ...] = ()

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end the output; it keeps the one that did."""
        return self.further_end_ids if self.end_id is None else (self.end_id, *self.further_end_ids)

    def ending_at(self, end_ids: Sequence[int]) -> Request:
        """Return the same request with other end ids."""
        first = end_ids[0] if end_ids else None
        return replace(self, end_id=first, further_end_ids=tuple(end_ids[1:]))

    @cached_property
    def is_plain(self) -> bool:
        """True if logits are only needed for the next token, which they and the filters determine without penalties."""
        sampling = self.sampling
        changed = not PENALTIES.keys().isdisjoint(sampling.processors) or sampling.num_rows > 1
        shown = self.return_context_logits or self.return_generation_logits or sampling.log_probs is not None
        return not (changed or shown)

    @cached_property
    def is_greedy(self) -> bool:
        """True if only the largest logit matters, and only for the next token."""
        return self.is_plain and not self.sampling.draws

    @property
    def keeps_parts(self) -> bool:
        """True if results of every prompt token are kept, so that each must be computed, and only once."""
        return self.return_context_logits or self.sampling.penalty_alpha > 0

    @property
    def max_tokens(self) -> int:
        """The most tokens of prompt and output together."""
        return len(self.prompt_ids) + self.max_new_tokens

    def max_blocks(self, tokens_per_block: int) -> int:
        """Return the most blocks of the KV cache it needs.

        Beams share the blocks that the prompt fills and have others of their own; candidates share all but the last.
        """
        needed = -(-self.max_tokens // tokens_per_block)
        shared = needed - 1 if self.sampling.penalty_alpha else len(self.prompt_ids) // tokens_per_block
        return shared + self.sampling.num_rows * (needed - shared)


@dataclass(frozen=True)
class TokenLogProbs:
    """Natural logarithms of the probabilities that the model gave a new token and the most likely tokens."""

    log_prob: float
    top: tuple[tuple[int, float], ...] = ()  # ids and log-probabilities of the most likely tokens, best first
    rank: int | None = None  # the place of the token, 1 for the most likely one; None if the engine does not tell


@dataclass(frozen=True)
class Result:
    """The answer to one request; `output_ids` are new tokens only, the end id or stop word that ended them included.

    For a beam search it is the best output, and `beams` has all `num_beams` outputs, best first.
    """

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    finish_reason: FinishReason
    context_logits: torch.Tensor | None = None  # fp32 [P, V]: row p follows prompt token p
    generation_logits: torch.Tensor | None = None  # fp32 [N, V]: row n chose new token n
    stop: Stop | None = None  # the stop word, if that ended the output
    log_probs: tuple[TokenLogProbs, ...] = ()  # one for each new token, if requested
    prompt_log_probs: tuple[TokenLogProbs, ...] = ()  # one for each prompt token but the first, if requested
    score: float | None = None  # the number that a beam was ranked by
    beams: tuple[Result, ...] = ()  # results without beams of their own

    @property
    def cum_log_prob(self) -> float:
        """The log-probability of all new tokens together; the request must have asked for log-probabilities."""
        assert len(self.log_probs) == len(self.output_ids), (len(self.log_probs), len(self.output_ids))
        return math.fsum(token.log_prob for token in self.log_probs)


@dataclass(frozen=True)
class TokenEvent:
    """One new token of the request at `index` in the list given to `stream`; the last one has a finish reason."""

    index: int
    token_id: int
    finish_reason: FinishReason | None
    stop: Stop | None = None
    log_probs: TokenLogProbs | None = None  # if requested
    prompt_log_probs: tuple[TokenLogProbs, ...] = ()  # of the request's first token, if requested
