"""Prompts and sampling parameters become requests: one for each output that is drawn, one for all beams."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TypeGuard

from opt_trt.api.sampling_params import SamplingParams
from opt_trt.errors import UserError
from opt_trt.runtime.request import Request
from opt_trt.runtime.session import Session
from opt_trt.runtime.stopping import StopWords
from opt_trt.text.output import Detokenizer
from opt_trt.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Asked:
    """A prompt and the requests that continue it, which differ in their random numbers."""

    prompt: str | None  # None if ids were given
    requests: tuple[Request, ...]
    tokenizer: Tokenizer | None = None  # what shows their outputs
    num_beams: int = 1  # outputs each request has: the best beams of a search


@dataclass(frozen=True)
class Asker:
    """What makes requests for a session."""

    session: Session
    tokenizer: Tokenizer | None
    seeds: Random

    def ask(self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None) -> list[Asked]:
        """Checked requests for prompts; `params` are for all of them or one for each."""
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else params
        if len(each) != len(prompts):
            raise UserError(
                f"expected one SamplingParams for all or {len(prompts)} for as many prompts, found {len(each)}"
            )
        asked = [self._ask(*one) for one in zip(range(len(prompts)), prompts, each, strict=True)]
        for index, one in enumerate(asked):
            for request in one.requests:
                self.session.check(request, index)
        return asked

    def _ask(self, index: int, prompt: Prompt, params: SamplingParams) -> Asked:
        text = prompt if isinstance(prompt, str) else None
        ids = self._ids(index, prompt)
        shown = self.tokenizer if params.skip_special_tokens or self.tokenizer is None else self.tokenizer.verbatim()
        sampling = params.of_sequence(self.seeds.getrandbits(32), self._bad_words(params))
        most = self.session.spec.max_seq_len - len(ids)
        request = Request(
            ids,
            max_new_tokens=most if params.max_tokens is None else params.max_tokens,
            end_id=None if params.ignore_eos else self.session.spec.end_id,
            stop_words=self._stop_words(params, shown),
            sampling=sampling,
        )
        if params.use_beam_search:
            return Asked(text, (request,), shown, num_beams=params.n)
        return Asked(text, draws(request, params.n), shown)

    def _ids(self, index: int, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return self._needed("a prompt of text").encode(prompt, sys.maxsize)
        if not is_ids(prompt):
            raise UserError(f"prompt {index} must be text or a list of token ids, found {type(prompt).__name__}")
        return tuple(prompt)

    def _stop_words(self, params: SamplingParams, shown: Tokenizer | None) -> StopWords | None:
        if not (params.stop_strings or params.stop_token_ids):
            return None
        spellings = tuple(self._needed("a stop string").encode_word(word) for word in params.stop_strings)
        ids = tuple((token_id,) for token_id in params.stop_token_ids or ())
        return StopWords(ids, params.stop_strings, None if shown is None else partial(Detokenizer, shown), spellings)

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        return tuple(self._needed("a bad word").encode_word(word) for word in params.bad_words or ())

    def _needed(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(f"{what} needs a tokenizer: give tokenizer=DIRECTORY, or token ids")
        return self.tokenizer


def draws(request: Request, number: int) -> tuple[Request, ...]:
    """The request as often as outputs are drawn, with other random numbers each time."""
    return tuple(replace(request, sampling=replace(request.sampling, sequence=one)) for one in range(number))


def as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One prompt, or several, as several."""
    if isinstance(prompts, str) or (prompts and is_ids(prompts)):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise UserError(f"expected prompts as text, token ids or a list of these, found {type(prompts).__name__}")
    return prompts


def is_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    """Whether this is a sequence of token ids (an empty one as well)."""
    return isinstance(prompt, list | tuple) and all(isinstance(token_id, int) for token_id in prompt)
