"""Spell the options in errors as Python's keyword arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opt_trt.errors import UserError

KEYWORDS = {  # options that have another name in Python; the others keep theirs
    "model_dir": "model",
    "tokenizer_dir": "tokenizer",
    "max_output_len": "max_tokens",
    "max_input_length": "the number of prompt tokens",
    "min_length": "min_tokens",
    "random_seed": "seed",
    "num_beams": "best_of",
    "allowed_ids": "allowed_token_ids",
    "log_probs": "logprobs",
    "prompt_log_probs": "prompt_logprobs",
    "no_add_special_tokens": "add_special_tokens=False",
}


@contextmanager
def in_python(**more: str) -> Iterator[None]:
    """Spell the options of all `UserError`s in the block as keyword arguments; `more` are names of this block alone."""
    names = KEYWORDS | more
    try:
        yield
    except UserError as error:
        raise error.as_spelled(lambda name: names.get(name, name)) from error
