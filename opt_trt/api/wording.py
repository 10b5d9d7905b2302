"""Say in the API's words what other layers say in those of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from opt_trt.errors import UserError

FLAG = re.compile(r"--(\w+)")
NAMES = {  # of flags that are called otherwise here; the others lose their dashes
    "model_dir": "model",
    "tokenizer_dir": "tokenizer",
    "max_output_len": "max_tokens",
    "max_input_length": "the number of prompt tokens",
    "min_length": "min_tokens",
    "random_seed": "seed",
    "num_beams": "best_of",
}


@contextmanager
def in_python(**more: str) -> Iterator[None]:
    """Name keyword arguments, not flags, in the `UserError`s of the block; `more` are names of this block alone."""
    names = NAMES | more
    try:
        yield
    except UserError as error:
        raise UserError(FLAG.sub(lambda flag: names.get(flag[1], flag[1]), str(error))) from error
