"""Turn prompts and flags into requests: which ids, how they are continued, and what ends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from opt_trt.config.run_flags import DEFAULT_PROMPT, Groups, RunConfig
from opt_trt.errors import UserError
from opt_trt.run import prompt_files
from opt_trt.runtime.request import Request
from opt_trt.runtime.stopping import StopWords
from opt_trt.step import DecoderSpec
from opt_trt.text.output import Detokenizer
from opt_trt.text.tokenizer import Tokenizer

NEVER_ENDS = -1  # the --end_id that switches the end id off
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
    end_id = _end_id(config, spec)
    log_probs = 0 if config.output_log_probs_npy or config.output_cum_log_probs_npy else None
    context_logits = returns_context_logits(config, spec)
    requests = []
    for ids, stop_words, bad_words in zip(prompts, all_stop_words, all_bad_words, strict=True):
        sampling = config.sampling(bad_words=_bad_words(bad_words, tokenizer), log_probs=log_probs)
        request = Request(
            ids, config.max_output_len, end_id, stop_words=_stop_words(stop_words, tokenizer),
            return_generation_logits=config.output_generation_logits,
        )  # fmt: skip
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
    if reads_text(config):
        assert tokenizer is not None
        texts = config.input_text if config.input_file is None else prompt_files.read_texts(Path(config.input_file))
        return [tokenizer.encode(text, config.max_input_length) for text in texts]
    assert config.input_file is not None
    pad_id = spec.pad_id if config.pad_id is None else config.pad_id
    return prompt_files.read_ids(
        Path(config.input_file), prompt_files.PromptRules(config.max_input_length, spec.vocab_size, pad_id)
    )


def _for_each_prompt(name: str, groups: Groups, num_prompts: int) -> Sequence[tuple[str, ...]]:
    """Return the words of every prompt; a single group is for all prompts."""
    if groups is None:
        return [()] * num_prompts
    if len(groups) not in (1, num_prompts):
        raise UserError(
            f"--{name} was given {len(groups)} times for {num_prompts} prompts; give it once for all, or once for each"
        )
    return groups if len(groups) == num_prompts else groups * num_prompts


def _stop_words(words: tuple[str, ...], tokenizer: Tokenizer | None) -> StopWords | None:
    if not words:
        return None
    assert tokenizer is not None
    spellings = tuple(map(tokenizer.encode_word, words))
    return StopWords(strings=words, open_text=partial(Detokenizer, tokenizer), spellings=spellings)


def _bad_words(words: tuple[str, ...], tokenizer: Tokenizer | None) -> tuple[Ids, ...]:
    if not words:
        return ()
    assert tokenizer is not None
    return tuple(tokenizer.encode_word(word) for word in words)


def _end_id(config: RunConfig, spec: DecoderSpec) -> int | None:
    end_id = spec.end_id if config.end_id is None else config.end_id
    if end_id == NEVER_ENDS:
        return None
    if not 0 <= end_id < spec.vocab_size:
        raise UserError(
            f"--end_id {end_id} is outside the vocabulary of the engine, 0 to {spec.vocab_size - 1}; "
            f"give one of these, or {NEVER_ENDS} to end at --max_output_len only"
        )
    return end_id
