"""What a request may ask of sampling, and what is refused because it contradicts itself."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from opt_trt.config.sampling import FILTERS, GREEDY, PENALTIES, Sampling
from opt_trt.errors import UserError
from opt_trt.runtime.sampling.processors import PROCESSORS


def test_the_default_is_greedy_and_changes_no_logit() -> None:
    assert (GREEDY.draws, GREEDY.processors) == (False, ())


def test_there_is_a_function_for_every_option_in_the_order_documented() -> None:
    assert tuple(PROCESSORS) == (*PENALTIES, *FILTERS)


@pytest.mark.parametrize(
    ("params", "draws", "processors"),
    [
        ({"top_k": 0, "top_p": 1.0}, True, ()),
        ({"top_k": 50}, True, ("top_k",)),
        ({"top_k": 0, "top_p": 0.9, "temperature": 0.7}, True, ("temperature", "top_p")),
        ({"top_k": 0, "min_p": 0.1}, True, ("min_p",)),
        ({"top_k": 50, "top_p": 0.9, "temperature": 0}, False, ()),
        ({"repetition_penalty": 1.2}, False, ("repetition_penalty",)),
        ({"penalty_alpha": 0.6, "top_k": 4, "min_length": 1}, False, ("min_length",)),
        ({"penalty_alpha": 0.0, "top_k": 4}, True, ("top_k",)),
        ({"min_length": 1, "bad_words": ((5,),), "top_k": 2}, True, ("bad_words", "min_length", "top_k")),
    ],
)
def test_options_say_whether_chance_has_a_say_and_what_changes_logits(
    params: dict[str, Any], draws: bool, processors: tuple[str, ...]
) -> None:
    made = Sampling(**params)
    assert (made.draws, made.processors) == (draws, processors)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"temperature": -1.0}, "--temperature must be 0 .greedy. or from 1e-05 to 100000, found -1.0"),
        ({"temperature": 1e-9, "top_k": 0, "top_p": 1.0}, "--temperature must be 0"),
        ({"temperature": nan}, "--temperature .* found nan"),
        ({"top_k": -1}, "--top_k must be at least 0, found -1"),
        ({"top_k": 0, "top_p": 1.5}, "--top_p must be from 0 to 1, found 1.5"),
        ({"top_k": 0, "top_p": nan}, "--top_p must be from 0 to 1, found nan"),
        ({"top_k": 0, "min_p": -0.1}, "--min_p must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "--repetition_penalty must be from 1e-05 to 100000, found 0.0"),
        ({"presence_penalty": inf}, "--presence_penalty must be from"),
        ({"frequency_penalty": nan}, "--frequency_penalty must be from"),
        ({"no_repeat_ngram_size": -1}, "--no_repeat_ngram_size must be at least 0"),
        ({"min_length": -1}, "--min_length must be at least 0"),
        ({"random_seed": -1}, "--random_seed must be at least 0"),
        ({"log_probs": -1}, "log_probs must be .* found -1"),
        ({"bad_words": ((1,), ())}, "a word without tokens"),
        ({"logit_bias": ((1, inf),)}, "numbers up to 100000"),
        ({"logit_bias": ((1, nan),)}, "numbers up to 100000"),
        ({"temperature": 0.7}, "--temperature 0.7 has no effect with --top_k 1.*give --top_k 50"),
        ({"top_p": 0.9}, "--top_p 0.9 has no effect with --top_k 1"),
        ({"min_p": 0.1}, "--min_p 0.1 has no effect with --top_k 1"),
        ({"top_k": 0}, "--top_k 0 leaves it to --top_p or --min_p"),
        ({"penalty_alpha": -0.1, "top_k": 4}, "--penalty_alpha must be from 0 to 1, found -0.1"),
        ({"penalty_alpha": 1.1, "top_k": 4}, "--penalty_alpha must be from 0 to 1"),
        ({"penalty_alpha": nan, "top_k": 4}, "--penalty_alpha must be from 0 to 1"),
        ({"penalty_alpha": 0.6}, "--penalty_alpha 0.6 compares the --top_k most likely .* found --top_k 1; give --top"),
        ({"penalty_alpha": 0.6, "top_k": 0}, "found --top_k 0"),
        ({"penalty_alpha": 0.6, "top_k": 4, "num_beams": 2}, "--penalty_alpha 0.6 and --num_beams 2 are two ways"),
        (
            {"penalty_alpha": 0.6, "top_k": 4, "top_p": 0.9},
            "leaves nothing to chance, --top_p 0.9 would have no effect",
        ),
        ({"penalty_alpha": 0.6, "top_k": 4, "min_p": 0.1}, "--min_p 0.1 would have no effect"),
        ({"penalty_alpha": 0.6, "top_k": 4, "temperature": 0.7}, "--temperature 0.7 would have no effect"),
        ({"penalty_alpha": 0.6, "top_k": 4, "temperature": 0}, "--temperature 0 would have no effect"),
        ({"penalty_alpha": 0.6, "top_k": 4, "length_penalty": 2.0}, "--length_penalty 2.0 has no effect with one beam"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(params: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        Sampling(**params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("neutral", [{"temperature": 1.0}, {"top_p": 1.0}, {"top_p": 0.0}, {"min_p": 0.0}])
def test_greedy_may_be_spelled_out(neutral: dict[str, Any]) -> None:
    assert Sampling(top_k=1, **neutral).processors == ()
