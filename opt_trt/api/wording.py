"""Spell the options in errors as Python's keyword arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from opt_trt.errors import SPELLED, UserError

KEYWORDS = {  # options that have another name in Python; the others keep theirs
    "model_dir": "model",
    "tokenizer_dir": "tokenizer",
    "max_output_len": "max_tokens",
    "max_input_length": "the number of prompt tokens",
    "min_length": "min_tokens",
    "random_seed": "seed",
    "num_beams": "best_of",
}
FLAG = re.compile(r"--(\w+)")


@contextmanager
def in_python(**more: str) -> Iterator[None]:
    """Spell the options of all `UserError`s in the block as keyword arguments; `more` are names of this block alone."""
    names = KEYWORDS | more
    try:
        yield
    except UserError as error:
        text = error.render(lambda name: names.get(name, name))
        if not SPELLED.search(error.text):  # a layer that still says flags
            text = FLAG.sub(lambda flag: names.get(flag[1], flag[1]), text)
        raise UserError(text) from error
