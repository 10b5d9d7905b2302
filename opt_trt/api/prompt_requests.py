"""Make requests of prompts and sampling parameters: one for each output that is drawn, or one for all beams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

from opt_trt.api.call_arguments import Params, Prompt, as_params, text_or_ids
from opt_trt.api.sampling_params import SamplingParams
from opt_trt.errors import UserError
from opt_trt.runtime.request import Request
from opt_trt.runtime.session import Session
from opt_trt.runtime.stopping import StopWords
from opt_trt.text.tokenizer import Tokenizer
from opt_trt.text.words import banned_with_and_without_space, stop_words


@dataclass(frozen=True)
class PromptRequests:
    """A prompt and the requests that continue it; they differ in their random numbers only."""

    prompt: str | None  # None if token ids were given
    requests: tuple[Request, ...]
    tokenizer: Tokenizer | None = None  # decodes the outputs
    num_beams: int = 1  # outputs of each request: the best beams of a search
    keeps_stop: bool = False  # texts have the stop word that ended them
    request_id: str = ""


@dataclass(frozen=True)
class RequestFactory:
    """The session that requests are made for, and what is needed to make them of prompts."""

    session: Session
    tokenizer: Tokenizer | None
    seeds: Random
    numbers: Iterator[int] = field(default_factory=count)  # of requests, by which they are known

    def make(self, prompts: Sequence[Prompt], params: Params | Sequence[Params] | None) -> list[PromptRequests]:
        """Return checked requests for prompts; `params` are for all of them, or one for each."""
        each = list(map(as_params, params)) if isinstance(params, Sequence) else [as_params(params)] * len(prompts)
        if len(each) != len(prompts):
            raise UserError(
                f"expected one SamplingParams for all or {len(prompts)} for as many prompts, found {len(each)}"
            )
        made = [self._of_prompt(*one) for one in zip(range(len(prompts)), prompts, each, strict=True)]
        for index, prompt in enumerate(made):
            for request in prompt.requests[:: max(1, len(prompt.requests) - 1)]:  # those between are like the last
                self.session.check(request, index)
        return [replace(prompt, request_id=str(next(self.numbers))) for prompt in made]

    def stopping_at(self, words: str | Sequence[str] | None) -> StopWords | None:
        """Return stop words that are strings."""
        return self._stop_words(SamplingParams(stop=words), self.tokenizer) if words else None

    def _of_prompt(self, index: int, prompt: Prompt, params: SamplingParams) -> PromptRequests:
        given = text_or_ids(index, prompt)
        text = given if isinstance(given, str) else None
        ids = self._ids(given, params)
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
            return_context_logits=params.prompt_logprobs is not None,
        ).ending_at(() if params.ignore_eos else self.session.spec.end_ids)
        shown, keeps_stop = tokenizer if params.detokenize else None, params.include_stop_str_in_output
        if params.use_beam_search:
            return PromptRequests(text, (request,), shown, num_beams=params.n, keeps_stop=keeps_stop)
        return PromptRequests(text, one_per_output(request, params.n), shown, keeps_stop=keeps_stop)

    def _ids(self, prompt: str | tuple[int, ...], params: SamplingParams) -> tuple[int, ...]:
        """Return the ids of a prompt, or as many of the last as `truncate_prompt_tokens` says."""
        most = params.truncate_prompt_tokens
        longest = self.session.spec.max_input_len if most == -1 else most
        if not isinstance(prompt, str):
            return prompt if longest is None else prompt[-longest:]
        tokenizer = self._needed("a prompt of text")
        ids = tokenizer.encode_whole(prompt, params.add_special_tokens)
        if longest is None:
            return ids
        return tokenizer.cut(ids, longest) if params.add_special_tokens else ids[-longest:]

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
    """Return `number` requests like this one, each with its own random numbers; the first tells of the prompt."""
    others = replace(request, sampling=replace(request.sampling, prompt_log_probs=None), return_context_logits=False)
    rest = (replace(others, sampling=others.sampling.for_output(one)) for one in range(1, number))
    return (request, *rest)
