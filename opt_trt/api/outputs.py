"""The outputs that `LLM` returns, with vLLM's and TensorRT-LLM's names, and how they grow token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from opt_trt.runtime.request import Request, TokenEvent, TokenLogProbs
from opt_trt.text.output import OutputText
from opt_trt.text.tokenizer import Decodes

FINISH_REASONS = {None: None, "length": "length", "end_id": "stop", "stop_words": "stop"}


@dataclass(frozen=True)
class Logprob:
    """The probability that the model gave a token."""

    logprob: float  # natural logarithm of its probability
    rank: int | None  # 1 for the most likely token; None if the engine does not tell
    decoded_token: str | None  # None without a tokenizer


@dataclass(frozen=True)
class CompletionOutput:
    """One output of a prompt, or as much of it as there is.

    `token_ids` include the end id or stop word that ended the output, `text` does not. `logprobs` has a dictionary for
    each token, of the token itself and the most likely ones. `stop_reason` is the stop word or id, None for the end id.
    """

    index: int  # its place among the prompt's outputs
    text: str  # empty without a tokenizer
    token_ids: list[int]  # the new tokens
    cumulative_logprob: float | None  # the sum over the tokens; None without `logprobs`
    logprobs: list[dict[int, Logprob]] | None  # None unless asked for; a beam search always has them
    finish_reason: str | None  # "length", "stop", or None while more is to come
    stop_reason: str | int | None  # the stop word or id; None for the end id
    text_diff: str  # what is new since the output before this one; never half a character
    token_ids_diff: list[int]  # the new tokens since the output before this one


@dataclass(frozen=True)
class RequestMetrics:
    """The times of a request, in seconds since 1970."""

    arrival_time: float
    first_token_time: float | None = None  # None before the first token
    last_token_time: float | None = None
    finished_time: float | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its outputs: finished ones, or, when streaming, what they have so far."""

    prompt: str | None  # None if token ids were given
    prompt_token_ids: list[int]  # as the engine was given them
    outputs: list[CompletionOutput]  # as many as asked for
    request_id: str = field(default="", compare=False)  # another one for each prompt of an `LLM`
    metrics: RequestMetrics | None = field(default=None, compare=False)  # its times
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # None unless asked for; None for the first token

    @property
    def finished(self) -> bool:
        """True if all outputs are finished."""
        return all(output.finish_reason is not None for output in self.outputs)


class PartialOutput:
    """One output while its tokens arrive."""

    def __init__(self, index: int, request: Request, tokenizer: Decodes | None, keeps_stop: bool = False) -> None:
        self._index = index
        self._keeps_stop = keeps_stop
        self._prompt_ids = request.prompt_ids
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._tokenizer = tokenizer
        self._pieces = None if tokenizer is None else OutputText(tokenizer, request.stop_words)
        self._text, self._ids = "", list[int]()
        self._logprobs: list[dict[int, Logprob]] | None = None if request.sampling.log_probs is None else []
        self._sums: list[float] = []
        self._last: TokenEvent | None = None
        self._returned = (0, 0)  # characters and tokens of the last `next_output`

    def add(self, events: Sequence[TokenEvent]) -> None:
        """Add the next tokens, at least one; the last one may end the output."""
        self._last = events[-1]
        ids = [event.token_id for event in events]
        self._ids += ids
        if prompt := events[0].prompt_log_probs:
            told = zip(self._prompt_ids[1:], prompt, strict=True)
            self.prompt_logprobs = [None, *(self._explain(token_id, one) for token_id, one in told)]
        for event in events:
            if event.log_probs is not None and self._logprobs is not None:
                self._logprobs.append(self._explain(event.token_id, event.log_probs))
                self._sums.append(event.log_probs.log_prob)
        if self._pieces is not None:
            self._text += self._new_text(self._pieces, ids, events[-1])

    def next_output(self) -> CompletionOutput:
        """Return the output so far; its `text_diff` begins where the previous one ended."""
        last, (characters, tokens) = self._last, self._returned
        self._returned = len(self._text), len(self._ids)
        return CompletionOutput(
            index=self._index,
            text=self._text,
            token_ids=list(self._ids),
            cumulative_logprob=None if self._logprobs is None else math.fsum(self._sums),
            logprobs=None if self._logprobs is None else list(self._logprobs),
            finish_reason=FINISH_REASONS[None if last is None else last.finish_reason],
            stop_reason=_stop_reason(last),
            text_diff=self._text[characters:],
            token_ids_diff=self._ids[tokens:],
        )

    def _new_text(self, pieces: OutputText, ids: list[int], last: TokenEvent) -> str:
        if last.finish_reason is None:
            return pieces.push(ids)
        by_text = last.stop is not None and last.stop.text_end is not None
        in_text = last.finish_reason == "length" or by_text or self._keeps_stop
        text = pieces.finish(ids if in_text else ids[:-1], last.stop)  # an id that ends an output is not part of it
        return text + str(last.stop.word) if self._keeps_stop and last.stop is not None and by_text else text

    def _explain(self, token_id: int, log_probs: TokenLogProbs) -> dict[int, Logprob]:
        ranks: dict[int, int | None] = {other: rank for rank, (other, _) in enumerate(log_probs.top, start=1)}
        values = {token_id: log_probs.log_prob} | dict(log_probs.top)
        ranks.setdefault(token_id, log_probs.rank)
        return {i: Logprob(value, ranks[i], self._decode(i)) for i, value in values.items()}

    def _decode(self, token_id: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.decode((token_id,))


def _stop_reason(last: TokenEvent | None) -> str | int | None:
    word = last.stop.word if last is not None and last.stop is not None else None
    return word[-1] if isinstance(word, tuple) else word
