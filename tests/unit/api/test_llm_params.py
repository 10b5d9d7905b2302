"""`SamplingParams` of the API mean what vLLM's do, and become those of a sequence."""

from __future__ import annotations

import ast
import copy
import pickle
from dataclasses import fields, replace
from pathlib import Path

import pytest

from opt_trt import LlmOptions, SamplingParams
from opt_trt.api import sampling_params
from opt_trt.api.call_arguments import CALL_NAMES, PROMPT_NAMES
from opt_trt.api.llm_keywords import LlmKeywords
from opt_trt.config.llm_names import LLM_NAMES
from opt_trt.config.other_names import ANY, NOTHING
from opt_trt.config.sampling import Sampling
from opt_trt.config.sampling_names import SAMPLING_NAMES
from opt_trt.config.tensor_names import TENSOR_NAMES
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


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"max_new_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"min_length": 2}, {"min_tokens": 2}),
        ({"random_seed": 7}, {"seed": 7}),
        ({"beam_width": 4}, {"use_beam_search": True, "best_of": 4, "n": 4}),
        ({"num_beams": 4}, {"use_beam_search": True, "best_of": 4}),
        ({"num_beams": 4, "num_return_sequences": 2}, {"use_beam_search": True, "best_of": 4, "n": 2}),
        ({"beam_width": 1, "num_beams": 1}, {}),
        ({"return_log_probs": True}, {"logprobs": 0}),
        ({"return_log_probs": False}, {}),
        ({"do_sample": False}, {"temperature": 0}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"end_id": 5}, {"ignore_eos": True, "stop_token_ids": [5]}),
        ({"eos_token_id": [5, 6]}, {"ignore_eos": True, "stop_token_ids": [5, 6]}),
        ({"end_id": -1}, {"ignore_eos": True}),
        ({"pad_id": 1, "skip_clone": True, "use_cache": True}, {}),
        ({"logits_processors": None, "guided_decoding": None, "structured_outputs": None}, {}),
        ({"logits_processors": []}, {}),
        ({"exclude_input_from_output": True, "spaces_between_special_tokens": True}, {}),
        ({"best_of": 1, "early_stopping": False}, {}),
        ({"n": 2, "best_of": 2}, {"n": 2}),
        ({"temperature": None, "top_p": None, "stop": None, "n": None}, {}),
        ({"max_new_tokens": None}, {}),
        ({"max_tokens": 9, "max_new_tokens": 9}, {"max_tokens": 9}),
    ],
    ids=str,
)
def test_names_of_other_tools_are_taken(given: dict, same: dict) -> None:
    expected = SamplingParams(**same)
    assert chosen(**given) == expected.of_sequence(7, ())
    taken = SamplingParams(**given)
    assert (taken.n, taken.max_tokens, taken.ignore_eos) == (expected.n, expected.max_tokens, expected.ignore_eos)
    assert list(taken.stop_token_ids or ()) == list(expected.stop_token_ids or ())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"logits_processors": [print]}, r"^SamplingParams has no logits_processors=.*: give logit_bias, allowed"),
        ({"guided_decoding": {"json": {}}}, "^SamplingParams has no guided_decoding=.*: outputs are not constrained"),
        ({"embedding_bias": 1}, "^SamplingParams has no embedding_bias=1: give logit_bias"),
        ({"bad_token_ids": [5]}, "give logit_bias={id: float"),
        ({"max_length": 20}, "^SamplingParams has no max_length=20: give max_tokens, which counts new tokens only"),
        ({"diversity_penalty": 0.5}, "give beam_search_diversity_rate"),
        ({"exclude_input_from_output": False}, "outputs have new tokens only; the prompt is in prompt_token_ids"),
        ({"max_tokens": 3, "max_new_tokens": 4}, "max_new_tokens is called max_tokens here, .* was given both"),
        ({"temprature": 1.0}, r"^SamplingParams has no option temprature; did you mean temperature\?"),
        ({"max-new-token": 1}, r"did you mean max_tokens\?"),
        ({"unheard_of": 1}, "^SamplingParams has no option unheard_of; known are temperature, top_k"),
        ({"allowed_token_ids": []}, "allowed_token_ids must have at least one id, found none"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be at least 1, or -1, found 0"),
        ({"detokenize": False, "stop": "x"}, "detokenize=False makes none; give stop_token_ids"),
        ({"prompt_logprobs": -1}, "^prompt_logprobs must be the number of alternatives, 0 or more, found -1"),
        ({"logprobs": -1}, "^logprobs must be the number of alternatives, 0 or more, found -1"),
        ({"max_new_tokens": 2.5}, "^max_tokens must be an integer or None, found 2.5"),
        ({"stop": [b"x" * 10**6]}, "^stop must be text or a list, each item text or None, found list$"),
    ],
    ids=str,
)
def test_what_is_not_done_is_answered_with_our_way(given: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SamplingParams(**given)


def test_parameters_are_named_and_do_not_change() -> None:
    with pytest.raises(UserError, match=r"by name only, for example SamplingParams\(temperature=0.8\), found 0.7"):
        SamplingParams(0.7)
    params = SamplingParams(temperature=0.5)
    with pytest.raises(UserError, match=r"does not change.* params.clone\(n=\.\.\.\)"):
        params.n = 2  # type: ignore[misc]
    assert params.clone() == params == copy.deepcopy(params) == pickle.loads(pickle.dumps(params))
    assert params.clone(n=2) == replace(params, n=2) == SamplingParams(temperature=0.5, n=2)


def test_every_name_that_is_taken_is_typed() -> None:
    tree = ast.parse(Path(sampling_params.__file__).read_text())
    [described] = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "OtherNames"]
    typed = {n.target.id for n in described.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    given = {name for name, row in SAMPLING_NAMES.items() if row.idle != NOTHING}
    assert typed | {"stop_strings"} == given  # which is a property, too
    own = {f.name for f in fields(LlmOptions)} - {"tokenizer"}
    taken = {name for name, row in LLM_NAMES.items() if row.idle != NOTHING or name.endswith(("revision", "_lora"))}
    assert {*LlmKeywords.__annotations__} == own | taken
    assert not own & {*LLM_NAMES} and not {f.name for f in fields(SamplingParams)} & {*SAMPLING_NAMES}


@pytest.mark.parametrize("names", [LLM_NAMES, SAMPLING_NAMES, CALL_NAMES, PROMPT_NAMES, TENSOR_NAMES])
def test_every_other_name_leads_somewhere(names: dict) -> None:
    for name, row in names.items():
        assert row.idle or row.ours or row.reads, name
        assert row.ours or row.reads or ANY in row.idle or row.way != "drop it", name
