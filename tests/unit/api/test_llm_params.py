"""`SamplingParams` of the API mean what vLLM's do, and become those of a sequence."""

from __future__ import annotations

import pytest

from opt_trt import SamplingParams
from opt_trt.config.sampling import Sampling
from opt_trt.errors import UserError


def chosen(**given: object) -> Sampling:
    return SamplingParams(**given).of_sequence(7, ())


def test_the_defaults_draw_from_all_tokens() -> None:
    assert chosen() == Sampling(top_k=0, top_p=1.0, random_seed=7)


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"top_k": 1}, {"top_k": 1, "temperature": 0.7, "top_p": 0.9}])
def test_greedy_is_asked_for_by_temperature_or_top_k(greedy: dict) -> None:
    assert not chosen(**greedy).draws


def test_every_field_has_its_place() -> None:
    given = chosen(
        min_tokens=2, temperature=0.5, top_k=-1, top_p=0.9, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=0.4, no_repeat_ngram_size=3, seed=11, logit_bias={5: 1.0}, logprobs=2,
    )  # fmt: skip
    assert given == Sampling(
        min_length=2, temperature=0.5, top_k=0, top_p=0.9, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=0.4, no_repeat_ngram_size=3, random_seed=11, logit_bias=((5, 1.0),), log_probs=2,
    )  # fmt: skip


def test_a_search_is_greedy_and_always_told_with_log_probabilities() -> None:
    given = {"length_penalty": 0.5, "early_stopping": 0, "beam_search_diversity_rate": 0.1, "repetition_penalty": 1.2}
    assert chosen(use_beam_search=True, best_of=4, **given) == Sampling(
        num_beams=4, temperature=0.0, top_k=0, top_p=1.0, random_seed=7, log_probs=0, **given
    )


def test_contrastive_search_has_transformers_names() -> None:
    expected = Sampling(penalty_alpha=0.6, top_k=4, top_p=1.0, random_seed=7)
    assert chosen(penalty_alpha=0.6, top_k=4) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n": 0}, "n must be at least 1, found 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, found 0"),
        ({"n": 2, "temperature": 0}, "n=2 would give one greedy output as many times; give a temperature above 0"),
        ({"min_tokens": -1}, "^min_tokens must be at least 0, found -1"),
        ({"temperature": -0.1}, "^temperature must be 0"),
        ({"top_p": 1.1}, "^top_p must be from 0 to 1, found 1.1"),
        ({"seed": -1}, "^seed must be at least 0"),
        (
            {"penalty_alpha": 0.6},
            "^penalty_alpha 0.6 compares the top_k most likely tokens, found top_k 0; give top_k 4",
        ),
        ({"penalty_alpha": 0.6, "top_k": 1}, "found top_k 1; give top_k 4"),
        ({"penalty_alpha": 0.6, "top_k": 4, "temperature": 0}, "temperature 0 would have no effect"),
        ({"penalty_alpha": 0.6, "top_k": 4, "n": 2}, "n=2 would give one contrastive output as many times; drop n or"),
    ],
)
def test_values_that_do_not_fit_are_named_as_they_were_given(given: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SamplingParams(**given)


def test_an_unknown_parameter_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="truncate_prompt_tokens"):
        SamplingParams(truncate_prompt_tokens=2)
