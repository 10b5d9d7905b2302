"""`LLM` over a real engine, made of a Hugging Face directory on first use, says what transformers says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from opt_trt import LLM, SamplingParams
from tests.engine.conftest import random_prompts

PROMPTS = random_prompts((3, 17, 1, 9))
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def llm(hf_model) -> Iterator[LLM]:
    with LLM(hf_model("pre-norm"), dtype="float32", max_batch_size=4) as made:
        yield made


def test_greedy_ids_equal_transformers_on_a_padded_batch(llm, oracle):
    model = oracle("pre-norm")
    width = max(map(len, PROMPTS))
    input_ids = torch.tensor([[1] * (width - len(prompt)) + list(prompt) for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    plain = model.generate(
        input_ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None
    )
    for end_id in (None, int(plain[0, width + 3])):
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": end_id, "pad_token_id": 1}
        expected = model.generate(input_ids=input_ids, attention_mask=mask, **options)
        assert torch.equal(llm.generate_ids(input_ids=input_ids, attention_mask=mask, **options), expected)


def test_answers_are_those_of_transformers(llm, oracle):
    model = oracle("pre-norm")
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0)
    for prompt, answer in zip(PROMPTS, llm.generate(list(PROMPTS), params), strict=True):
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None
        )[0, len(prompt) :]
        assert answer.outputs[0].token_ids == expected.tolist()


def test_beams_equal_transformers_on_a_padded_batch(llm, oracle):
    width = max(map(len, PROMPTS))
    input_ids = torch.tensor([[1] * (width - len(prompt)) + list(prompt) for prompt in PROMPTS])
    options = {"max_new_tokens": NEW_TOKENS, "num_beams": 4, "num_return_sequences": 3, "eos_token_id": None}
    asked = {"input_ids": input_ids, "attention_mask": (input_ids != 1).long(), "pad_token_id": 1, **options}
    assert torch.equal(llm.generate_ids(**asked), oracle("pre-norm").generate(do_sample=False, **asked))


def test_it_opens_at_once_the_second_time(llm, hf_model, capsys):
    with LLM(hf_model("pre-norm"), dtype="float32", max_batch_size=4) as again:
        params = SamplingParams(temperature=0, max_tokens=4)
        assert again.generate(PROMPTS[0], params) == llm.generate(PROMPTS[0], params)
    assert capsys.readouterr() == ("", "")
