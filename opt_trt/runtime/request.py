"""What a session is asked for and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Literal

from opt_trt.config.sampling import GREEDY, PENALTIES, SamplingParams
from opt_trt.errors import UserError
from opt_trt.runtime.admission import describe_rows, rows_problem
from opt_trt.runtime.stopping import Stop, StopWords

if TYPE_CHECKING:  # the scheduler is plain Python: it must import without torch
    import torch

    from opt_trt.step import DecoderSpec

FinishReason = Literal["end_id", "stop_words", "length", "cancelled", "failed"]


class RequestFailed(UserError):
    """One request cannot be served or cannot go on; those beside it are not to blame."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"prompt {index} {problem}")
        self.index = index
        self.problem = problem


@dataclass(frozen=True)
class Request:
    """Continue `prompt_ids` by at most `max_new_tokens` tokens, chosen as `sampling` says.

    `end_id` is looked for in new tokens only (OPT begins a prompt with the token that ends it); None never ends early.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    end_id: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    sampling: SamplingParams = GREEDY
    stop_words: StopWords | None = None

    @cached_property
    def is_plain(self) -> bool:
        """Whether of logits nothing but the next token matters, and that is theirs and the filters' alone to say."""
        sampling = self.sampling
        changed = not PENALTIES.keys().isdisjoint(sampling.processors) or sampling.num_rows > 1
        shown = self.return_context_logits or self.return_generation_logits or sampling.log_probs is not None
        return not (changed or shown)

    @cached_property
    def is_greedy(self) -> bool:
        """Whether nothing but the largest logit matters, and that only for the next token."""
        return self.is_plain and not self.sampling.draws

    @property
    def keeps_parts(self) -> bool:
        """Whether something of every prompt token is kept as it is computed: it must be computed, and only once."""
        return self.return_context_logits or self.sampling.penalty_alpha > 0

    @property
    def max_tokens(self) -> int:
        """Prompt and new tokens together, at most."""
        return len(self.prompt_ids) + self.max_new_tokens

    def max_blocks(self, tokens_per_block: int) -> int:
        """Blocks of the KV cache it needs at most.

        Beams share those the prompt fills and have the others each; candidates share all but the last one.
        """
        needed = -(-self.max_tokens // tokens_per_block)
        shared = needed - 1 if self.sampling.penalty_alpha else len(self.prompt_ids) // tokens_per_block
        return shared + self.sampling.num_rows * (needed - shared)


@dataclass(frozen=True)
class TokenLogProbs:
    """Natural logarithms of the probabilities the model gave a new token and the most likely ones, best first."""

    log_prob: float
    top: tuple[tuple[int, float], ...] = ()  # id and log-probability of as many as were asked for


@dataclass(frozen=True)
class Result:
    """The answer to one request; `output_ids` are new tokens only, the end id or stop word that ended them included.

    Of a beam search it is the best output, and `beams` has all of them, `num_beams` results without beams of their own.
    """

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    finish_reason: FinishReason
    context_logits: torch.Tensor | None = None  # fp32 [P, V]: row p follows prompt token p
    generation_logits: torch.Tensor | None = None  # fp32 [N, V]: row n chose new token n
    stop: Stop | None = None  # the stop word, where it is the reason
    log_probs: tuple[TokenLogProbs, ...] = ()  # of each new token, if asked for
    score: float | None = None  # of a beam: what it was ranked by
    beams: tuple[Result, ...] = ()  # best first

    @property
    def cum_log_prob(self) -> float:
        """The log-probability of all new tokens together; it must have been asked for."""
        assert len(self.log_probs) == len(self.output_ids), (len(self.log_probs), len(self.output_ids))
        return math.fsum(token.log_prob for token in self.log_probs)


@dataclass(frozen=True)
class TokenEvent:
    """One new token of the request at `index` in the list given to `stream`; the last one has a finish reason."""

    index: int
    token_id: int
    finish_reason: FinishReason | None
    stop: Stop | None = None
    log_probs: TokenLogProbs | None = None  # if asked for


def check_request(request: Request, index: int, spec: DecoderSpec, pool_tokens: int) -> None:
    """Raise `RequestFailed` if the decoder or a KV cache of `pool_tokens` cannot serve the request."""
    problem = rows_problem(request, spec) or request_problem(request, spec) or _pool_problem(request, spec, pool_tokens)
    if problem:
        raise RequestFailed(index, problem)


def request_problem(request: Request, spec: DecoderSpec) -> str | None:
    """Why no engine of these limits serves the request, whatever its memory; None if one may."""
    return (
        _prompt_problem(request, spec)
        or _length_problem(request, spec)
        or _logits_problem(request, spec)
        or _sampling_problem(request, spec)
    )


def _prompt_problem(request: Request, spec: DecoderSpec) -> str | None:
    ids = request.prompt_ids
    if not ids:
        return "is empty; give at least one token (--no_add_special_tokens leaves out the </s> in front)"
    if min(ids) < 0 or max(ids) >= spec.vocab_size:
        bad = next(i for i in ids if not 0 <= i < spec.vocab_size)
        return f"has token id {bad}, the vocabulary is 0 to {spec.vocab_size - 1}; use the tokenizer of the model"
    if len(ids) > spec.max_input_len:
        return (
            f"has {len(ids)} tokens, the engine takes {spec.max_input_len}; "
            "lower --max_input_length or build with a larger --max_input_len"
        )
    return None


def _length_problem(request: Request, spec: DecoderSpec) -> str | None:
    if request.max_new_tokens < 1:
        return f"asks for {request.max_new_tokens} new tokens; --max_output_len must be at least 1"
    if request.max_tokens > spec.max_seq_len:
        return (
            f"needs {_length(request)}, the engine takes {spec.max_seq_len}; "
            "lower --max_output_len or --max_input_length, or build with a larger --max_seq_len"
        )
    return None


def _pool_problem(request: Request, spec: DecoderSpec, pool_tokens: int) -> str | None:
    needed = request.max_blocks(spec.tokens_per_block) * spec.tokens_per_block
    if max(request.max_tokens, needed) > pool_tokens:
        rows = f" of {describe_rows(request.sampling)}" * (request.sampling.num_rows > 1)
        return (
            f"needs {_length(request)}{rows}, the whole KV cache holds {pool_tokens}; raise "
            "--max_tokens_in_paged_kv_cache or --kv_cache_free_gpu_memory_fraction, or lower --max_output_len"
        )
    return None


def _length(request: Request) -> str:
    return f"{len(request.prompt_ids)} tokens + {request.max_new_tokens} new ones = {request.max_tokens}"


def _logits_problem(request: Request, spec: DecoderSpec) -> str | None:
    if request.return_context_logits and not spec.gather_context_logits:
        return "asks for context logits; build the engine with --gather_context_logits"
    if request.return_generation_logits and not spec.gather_generation_logits:
        return "asks for generation logits; build the engine with --gather_generation_logits"
    return None


def _sampling_problem(request: Request, spec: DecoderSpec) -> str | None:
    stop_ids = () if request.stop_words is None else chain.from_iterable(request.stop_words.ids)
    bad = next((i for i in (*request.sampling.token_ids, *stop_ids) if not 0 <= i < spec.vocab_size), None)
    if bad is not None:
        return (
            f"bans, biases or stops at token id {bad}, the vocabulary is 0 to {spec.vocab_size - 1}; "
            "use the tokenizer of the model"
        )
    if request.sampling.min_length > request.max_new_tokens:
        return (
            f"asks for at least {request.sampling.min_length} and at most {request.max_new_tokens} new tokens; "
            "lower --min_length or raise --max_output_len"
        )
    return None
