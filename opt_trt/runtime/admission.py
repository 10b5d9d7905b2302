"""Refuse requests that an engine can never serve, and say what the user can change."""

from __future__ import annotations

from itertools import chain

from opt_trt.config.sampling import Sampling
from opt_trt.errors import spelled
from opt_trt.runtime.request import Request, RequestFailed
from opt_trt.step import DecoderSpec


def check_request(request: Request, index: int, spec: DecoderSpec, pool_tokens: int) -> None:
    """Raise `RequestFailed` if the decoder or a KV cache of `pool_tokens` cannot serve the request."""
    problem = rows_problem(request, spec) or request_problem(request, spec) or _pool_problem(request, spec, pool_tokens)
    if problem:
        raise RequestFailed(index, problem)


def rows_problem(request: Request, spec: DecoderSpec) -> str | None:
    """Return why a decoder cannot serve the rows of a search, its beams or candidates; None if it can."""
    sampling, most = request.sampling, min(spec.max_batch_size, spec.max_num_tokens)
    if sampling.num_rows > most:
        rows = spelled("top_k" if sampling.penalty_alpha else "num_beams")
        return (
            f"asks for {describe_rows(sampling)}, each a sequence of the batch, of which the engine takes {most}; "
            f"lower {rows} or build with a larger {spelled('max_batch_size')}"
        )
    return beams_problem(request)


def beams_problem(request: Request) -> str | None:
    """Return why a beam search cannot have what follows a single output; None if the request asks for no such thing."""
    if request.sampling.num_beams == 1:
        return None
    if request.stop_words is not None:
        return (
            "asks for beams and for stop words, which follow a single output; "
            f"drop {spelled('num_beams')} or {spelled('stop_words')}"
        )
    if request.return_generation_logits:
        return "asks for beams and for generation logits, which follow a single output; drop one of the two"
    return None


def request_problem(request: Request, spec: DecoderSpec) -> str | None:
    """Return why no engine of these limits serves the request, whatever its memory; None if an engine may."""
    return (
        _prompt_problem(request, spec)
        or _length_problem(request, spec)
        or _logits_problem(request, spec)
        or _sampling_problem(request, spec)
    )


def _prompt_problem(request: Request, spec: DecoderSpec) -> str | None:
    ids = request.prompt_ids
    if not ids:
        no_end_id = spelled("no_add_special_tokens")
        return f"is empty; give at least one token ({no_end_id} leaves out the </s> in front)"
    if min(ids) < 0 or max(ids) >= spec.vocab_size:
        bad = next(i for i in ids if not 0 <= i < spec.vocab_size)
        return f"has token id {bad}, the vocabulary is 0 to {spec.vocab_size - 1}; use the tokenizer of the model"
    if len(ids) > spec.max_input_len:
        return (
            f"has {len(ids)} tokens, the engine takes {spec.max_input_len}; "
            f"lower {spelled('max_input_length')} or build with a larger {spelled('max_input_len')}"
        )
    return None


def _length_problem(request: Request, spec: DecoderSpec) -> str | None:
    if request.max_new_tokens < 1:
        return f"asks for {request.max_new_tokens} new tokens; {spelled('max_output_len')} must be at least 1"
    if request.max_tokens > spec.max_seq_len:
        return (
            f"needs {_describe_length(request)}, the engine takes {spec.max_seq_len}; lower "
            f"{spelled('max_output_len')} or {spelled('max_input_length')}, or build with a larger "
            f"{spelled('max_seq_len')}"
        )
    return None


def _logits_problem(request: Request, spec: DecoderSpec) -> str | None:
    if request.return_context_logits and not spec.gather_context_logits:
        return f"asks for context logits; build the engine with {spelled('gather_context_logits')}"
    if request.return_generation_logits and not spec.gather_generation_logits:
        return f"asks for generation logits; build the engine with {spelled('gather_generation_logits')}"
    return None


def _sampling_problem(request: Request, spec: DecoderSpec) -> str | None:
    stop_ids = () if request.stop_words is None else chain.from_iterable(request.stop_words.ids)
    ids = (*request.sampling.token_ids, *stop_ids, *request.further_end_ids)
    bad = next((i for i in ids if not 0 <= i < spec.vocab_size), None)
    if bad is not None:
        return (
            f"bans, biases or stops at token id {bad}, the vocabulary is 0 to {spec.vocab_size - 1}; "
            "use the tokenizer of the model"
        )
    if request.sampling.min_length > request.max_new_tokens:
        return (
            f"asks for at least {request.sampling.min_length} and at most {request.max_new_tokens} new tokens; "
            f"lower {spelled('min_length')} or raise {spelled('max_output_len')}"
        )
    return None


def _pool_problem(request: Request, spec: DecoderSpec, pool_tokens: int) -> str | None:
    needed = request.max_blocks(spec.tokens_per_block) * spec.tokens_per_block
    if max(request.max_tokens, needed) > pool_tokens:
        rows = f" of {describe_rows(request.sampling)}" * (request.sampling.num_rows > 1)
        return (
            f"needs {_describe_length(request)}{rows}, the whole KV cache holds {pool_tokens}; raise "
            f"{spelled('max_tokens_in_paged_kv_cache')} or {spelled('kv_cache_free_gpu_memory_fraction')}, or lower "
            f"{spelled('max_output_len')}"
        )
    return None


def describe_rows(sampling: Sampling) -> str:
    """Return the number of rows and what they are called: `3 beams`."""
    return f"{sampling.num_rows} {'candidates' if sampling.penalty_alpha else 'beams'}"


def _describe_length(request: Request) -> str:
    return f"{len(request.prompt_ids)} tokens + {request.max_new_tokens} new ones = {request.max_tokens}"
