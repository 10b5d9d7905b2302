"""Make requests of prompts and sampling parameters: one for each output that is drawn, or one for all beams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeGuard

from opt_trt.api.sampling_params import SamplingParams
from opt_trt.errors import UserError
from opt_trt.runtime.request import Request
from opt_trt.runtime.session import Session
from opt_trt.runtime.stopping import StopWords
from opt_trt.text.tokenizer import Tokenizer
from opt_trt.text.words import banned_with_and_without_space, stop_words

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class PromptRequests:
    """A prompt and the requests that continue it; they differ in their random numbers only."""

    prompt: str | None  # None if token ids were given
    requests: tuple[Request, ...]
    tokenizer: Tokenizer | None = None  # decodes the outputs
    num_beams: int = 1  # outputs of each request: the best beams of a search


@dataclass(frozen=True)
class RequestFactory:
    """The session that requests are made for, and what is needed to make them of prompts."""

    session: Session
    tokenizer: Tokenizer | None
    seeds: Random

    def make(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[PromptRequests]:
        """Return checked requests for prompts; `params` are for all of them, or one for each."""
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else params
        if len(each) != len(prompts):
            raise UserError(
                f"expected one SamplingParams for all or {len(prompts)} for as many prompts, found {len(each)}"
            )
        made = [self._of_prompt(*one) for one in zip(range(len(prompts)), prompts, each, strict=True)]
        for index, prompt in enumerate(made):
            for request in prompt.requests:
                self.session.check(request, index)
        return made

    def _of_prompt(self, index: int, prompt: Prompt, params: SamplingParams) -> PromptRequests:
        text = prompt if isinstance(prompt, str) else None
        ids = self._ids(index, prompt, params.add_special_tokens)
        tokenizer = self.tokenizer
        if tokenizer is not None and not params.skip_special_tokens:
            tokenizer = tokenizer.verbatim()
        sampling = params.of_sequence(self.seeds.getrandbits(32), self._bad_words(params))
        most = self.session.spec.max_seq_len - len(ids)
        request = Request(
            ids,
            max_new_tokens=most if params.max_tokens is None else params.max_tokens,
            stop_words=self._stop_words(params, tokenizer),
            sampling=sampling,
        ).ending_at(() if params.ignore_eos else self.session.spec.end_ids)
        if params.use_beam_search:
            return PromptRequests(text, (request,), tokenizer, num_beams=params.n)
        return PromptRequests(text, one_per_output(request, params.n), tokenizer)

    def _ids(self, index: int, prompt: Prompt, add_special_tokens: bool) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return self._needed("a prompt of text").encode_whole(prompt, add_special_tokens)
        if not is_ids(prompt):
            raise UserError(f"prompt {index} must be text or a list of token ids, found {type(prompt).__name__}")
        return tuple(prompt)

    def _stop_words(self, params: SamplingParams, tokenizer: Tokenizer | None) -> StopWords | None:
        ids = [(token_id,) for token_id in params.stop_token_ids or ()]
        if tokenizer is None:
            if params.stop_strings:
                self._needed("a stop string")
            return StopWords(tuple(ids)) if ids else None
        return stop_words(params.stop_strings, tokenizer, ids)

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        words = (params.bad_words,) if isinstance(params.bad_words, str) else params.bad_words or ()
        return banned_with_and_without_space(words, self._needed("a bad word")) if words else ()

    def _needed(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(f"{what} needs a tokenizer: give tokenizer=DIRECTORY, or token ids")
        return self.tokenizer


def one_per_output(request: Request, number: int) -> tuple[Request, ...]:
    """Return `number` requests like this one, each with random numbers of its own."""
    return tuple(replace(request, sampling=replace(request.sampling, sequence=one)) for one in range(number))


def as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """Return one prompt, or several, as a sequence of prompts."""
    if isinstance(prompts, str) or (prompts and is_ids(prompts)):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise UserError(f"expected prompts as text, token ids or a list of these, found {type(prompts).__name__}")
    return prompts


def is_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    """Return whether this is a sequence of token ids, which may be empty."""
    return isinstance(prompt, list | tuple) and all(
        isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in prompt
    )
