"""Turn prompts and flags into requests: which ids, how they are continued, and what ends them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opt_trt.config.run_flags import DEFAULT_PROMPT, Groups, RunConfig
from opt_trt.config.session_flags import NEVER_ENDS
from opt_trt.errors import UserError
from opt_trt.run import prompt_files
from opt_trt.runtime.request import Request
from opt_trt.step import DecoderSpec
from opt_trt.text.tokenizer import Tokenizer
from opt_trt.text.words import banned_ids, stop_words

TOLD = 10  # prompts that are cut are named up to this number
Ids = tuple[int, ...]


def reads_text(config: RunConfig) -> bool:
    """Return whether prompts are text, not token ids."""
    if config.input_file is None:
        return True
    if config.input_text != (DEFAULT_PROMPT,):
        raise UserError("--input_text and --input_file both give prompts; drop one of the two")
    return prompt_files.is_text(Path(config.input_file))


def make_requests(config: RunConfig, spec: DecoderSpec, tokenizer: Tokenizer | None) -> list[Request]:
    """Return `num_draws` requests per prompt, prompt by prompt; text and words need a tokenizer."""
    assert config.max_output_len is not None  # checked by RunConfig
    prompts = _prompts(config, spec, tokenizer)
    all_stop_words = _for_each_prompt("stop_words", config.stop_words, len(prompts))
    all_bad_words = _for_each_prompt("bad_words", config.bad_words, len(prompts))
    end_ids = _end_ids(config, spec)
    log_probs = 0 if config.output_log_probs_npy or config.output_cum_log_probs_npy else None
    context_logits = returns_context_logits(config, spec)
    requests = []
    for ids, stops, bans in zip(prompts, all_stop_words, all_bad_words, strict=True):
        assert tokenizer is not None or not (stops or bans)  # checked by `run`
        sampling = config.sampling(bad_words=banned_ids(bans, tokenizer) if tokenizer else (), log_probs=log_probs)
        request = Request(
            ids, config.max_output_len, stop_words=stop_words(stops, tokenizer) if tokenizer else None,
            return_generation_logits=config.output_generation_logits,
        ).ending_at(end_ids)  # fmt: skip
        requests += [
            replace(
                request,
                sampling=replace(sampling, sequence=number),
                return_context_logits=context_logits and number == 0,  # once per prompt
            )
            for number in range(config.num_draws)
        ]
    return requests


def returns_context_logits(config: RunConfig, spec: DecoderSpec) -> bool:
    """Return whether there are context logits to write: as upstream, if a file is named and the engine gathers them."""
    asked = config.output_logits_npy is not None
    if asked and not (spec.gather_context_logits or config.output_generation_logits):
        raise UserError(
            "--output_logits_npy: the engine gathers no context logits; build it with --gather_context_logits, "
            "or give --output_generation_logits for those of new tokens"
        )
    return asked and spec.gather_context_logits


def _prompts(config: RunConfig, spec: DecoderSpec, tokenizer: Tokenizer | None) -> list[Ids]:
    """Return the ids of all prompts; print a line for each that is cut."""
    most = config.max_input_length or _room(config, spec)
    if reads_text(config):
        assert tokenizer is not None
        texts = config.input_text if config.input_file is None else prompt_files.read_texts(Path(config.input_file))
        prompts = [tokenizer.encode_whole(text) for text in texts]
    else:
        assert config.input_file is not None
        pad_id = spec.pad_id if config.pad_id is None else config.pad_id
        rules = prompt_files.PromptRules(spec.vocab_size, pad_id)
        prompts = prompt_files.read_ids(Path(config.input_file), rules)
    _tell_of_cuts([len(ids) for ids in prompts], most)
    cut = tokenizer.cut if tokenizer is not None and reads_text(config) else _last
    return [cut(ids, most) for ids in prompts]


def _room(config: RunConfig, spec: DecoderSpec) -> int:
    """Return the longest prompt that the engine takes beside the output asked for."""
    assert config.max_output_len is not None  # checked by RunConfig
    room = spec.max_seq_len - config.max_output_len
    return min(spec.max_input_len, room) if room > 0 else spec.max_input_len  # without room, the request is refused


def _last(ids: Ids, max_length: int) -> Ids:
    return ids[-max_length:]


def _tell_of_cuts(lengths: Sequence[int], most: int) -> None:
    """Print a line for each of the first prompts that are cut, and one for the rest of them."""
    long = [(prompt, length) for prompt, length in enumerate(lengths) if length > most]
    for prompt, length in long[:TOLD]:
        print(f"prompt {prompt}: {length:,} tokens, the last {most:,} are used (--max_input_length)", file=sys.stderr)
    if len(long) > TOLD:
        print(f"{len(long) - TOLD:,} more prompts are cut to {most:,} tokens", file=sys.stderr)


def _for_each_prompt(name: str, groups: Groups, num_prompts: int) -> Sequence[tuple[str, ...]]:
    """Return the words of every prompt; a single group is for all prompts."""
    if groups is None:
        return [()] * num_prompts
    if len(groups) not in (1, num_prompts):
        raise UserError(
            f"--{name} was given {len(groups)} times for {num_prompts} prompts; give it once for all, or once for each"
        )
    return groups if len(groups) == num_prompts else groups * num_prompts


def _end_ids(config: RunConfig, spec: DecoderSpec) -> Ids:
    if config.end_id == (NEVER_ENDS,):
        return ()
    end_ids = spec.end_ids if config.end_id is None else config.end_id
    bad = next((i for i in end_ids if not 0 <= i < spec.vocab_size), None)
    if bad is not None:
        raise UserError(
            f"--end_id {bad} is outside the vocabulary of the engine, 0 to {spec.vocab_size - 1}; "
            f"give one of these, or {NEVER_ENDS} to end at --max_output_len only"
        )
    return end_ids
