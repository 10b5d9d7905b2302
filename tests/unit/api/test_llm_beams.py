"""Beams through `LLM`: transformers' ids and scores, and refusals in the words of the interface."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import OPTForCausalLM

from opt_trt import LLM, SamplingParams
from opt_trt.errors import UserError
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.unit._decoders import SumDecoder
from tests.unit._llms import sums
from tests.unit._reference_decoder import VOCAB_SIZE, ReferenceDecoder, random_model

NEW_TOKENS = 10
LENGTHS = (5, 1, 9)
PROMPTS = [torch.randint(3, VOCAB_SIZE, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]
PADDED = torch.tensor([[1] * (max(LENGTHS) - len(prompt)) + prompt for prompt in PROMPTS])
MASK = (PADDED != 1).long()
THREE = SamplingParams(use_beam_search=True, n=3, max_tokens=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OPTForCausalLM, LLM]]:
    """One model, in transformers and as an `LLM`."""
    directory = random_model("pre-norm", tmp_path_factory.mktemp("model"))
    oracle = OPTForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    decoder = ReferenceDecoder(directory, tmp_path_factory.mktemp("work") / "checkpoint")
    with LLM.over(DecoderSession(decoder, KvCacheLimit())) as llm:
        yield oracle, llm


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 5, "num_return_sequences": 5},
        {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True, "length_penalty": 0.5},
        {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never", "length_penalty": 2.0},
        {"num_beams": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    ],
)
@pytest.mark.parametrize("end_id", [None, 17])
def test_tensors_are_those_of_transformers(
    models: tuple[OPTForCausalLM, LLM], options: dict[str, Any], end_id: int | None
) -> None:
    oracle, llm = models
    asked = options | {"max_new_tokens": NEW_TOKENS, "eos_token_id": end_id, "pad_token_id": 1, "do_sample": False}
    expected = oracle.generate(PADDED, attention_mask=MASK, **asked)
    assert torch.equal(llm.generate_ids(PADDED, attention_mask=MASK, **asked), expected)


def test_all_beams_of_a_prompt_are_one_answer_best_first(models: tuple[OPTForCausalLM, LLM]) -> None:
    oracle, llm = models
    params = SamplingParams(
        use_beam_search=True, best_of=4, n=3, max_tokens=NEW_TOKENS, ignore_eos=True, length_penalty=0.7
    )
    for prompt, answer in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
        expected = oracle.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), num_beams=4, num_return_sequences=3,
            max_new_tokens=NEW_TOKENS, eos_token_id=None, do_sample=False, early_stopping=True, length_penalty=0.7,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        assert [output.index for output in answer.outputs] == [0, 1, 2]
        assert [output.token_ids for output in answer.outputs] == expected.sequences[:, len(prompt) :].tolist()
        scores = [(output.cumulative_logprob or 0.0) / NEW_TOKENS**0.7 for output in answer.outputs]
        assert scores == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)  # fp32 sums in another order
        assert {output.finish_reason for output in answer.outputs} == {"length"} and answer.finished


def test_beams_have_the_log_probabilities_asked_for() -> None:
    with sums() as llm:
        for asked, told in ((None, 1), (0, 1), (2, 2)):
            params = SamplingParams(use_beam_search=True, best_of=2, max_tokens=3, logprobs=asked, ignore_eos=True)
            [output] = llm.generate([1, 3], params)[0].outputs
            assert output.logprobs is not None and [len(token) for token in output.logprobs] == [told] * 3
            chosen = [token[i].logprob for i, token in zip(output.token_ids, output.logprobs, strict=True)]
            assert output.cumulative_logprob == pytest.approx(sum(chosen))


def test_n_is_the_number_of_beams_and_one_of_them_may_do() -> None:
    with sums() as llm:
        three = llm.generate([1, 3], THREE)[0].outputs
        [best] = llm.generate([1, 3], SamplingParams(use_beam_search=True, best_of=3, max_tokens=4))[0].outputs
    assert len({tuple(output.token_ids) for output in three}) == 3 and three[0] == best


def test_searches_draws_and_prompts_of_several_threads_do_not_mix() -> None:
    begun = threading.Event()
    ways = (THREE, SamplingParams(n=2, seed=3, max_tokens=5), SamplingParams(temperature=0, max_tokens=6))
    with sums() as llm:
        alone = [llm.generate([[1, 3], [5]], params) for params in ways]
    with sums(SumDecoder(before_step=lambda inputs: begun.wait(60))) as llm, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(llm.generate, [[1, 3], [5]], params) for params in ways * 2]
        begun.set()
        assert [answer.result(60) for answer in answers] == alone * 2
        assert llm.generate([[1, 3], [5], [5]], [ways[2], THREE, ways[2]])[1] == alone[0][1]


def test_beams_are_not_streamed() -> None:
    async def stream(llm: LLM) -> None:
        async for _ in llm.generate_async([1], THREE):
            pass

    with (
        sums() as llm,
        pytest.raises(UserError, match="cannot be streamed; await the answer, give streaming=False, or drop"),
    ):
        asyncio.run(stream(llm))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"best_of": 4}, "best_of says how to search with beams: give use_beam_search=True too, or drop it"),
        ({"length_penalty": 0.5}, "length_penalty says how to search with beams"),
        ({"use_beam_search": True}, "needs more than one beam and at least n=1, found best_of=None; give best_of=4"),
        ({"use_beam_search": True, "n": 5, "best_of": 4}, "at least n=5, found best_of=4; give best_of=5"),
        ({"use_beam_search": True, "best_of": 0}, "best_of must be at least 1, found 0"),
        ({"use_beam_search": True, "n": 2, "early_stopping": 3}, "^early_stopping must be from 0 to 2, found 3"),
        ({"use_beam_search": True, "n": 2, "top_p": 0.9}, "^top_p=0.9 draws or ends a single output, use_beam_search="),
        ({"use_beam_search": True, "n": 2, "temperature": 0.7}, "^temperature=0.7 draws or ends a single output"),
        ({"use_beam_search": True, "n": 2, "stop": ["x"]}, r"^stop=\['x'\] draws or ends a single output"),
    ],
)
def test_what_a_search_cannot_do_is_refused_by_name(given: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SamplingParams(**given)


def test_more_beams_than_the_batch_holds_are_refused_by_the_name_given() -> None:
    with sums() as llm:
        with pytest.raises(UserError, match="engine takes 4; lower best_of or build with a larger max_batch_size"):
            llm.generate([1], SamplingParams(use_beam_search=True, best_of=9, max_tokens=2))
        with pytest.raises(UserError, match="engine takes 4; lower num_beams or build with a larger max_batch_size"):
            llm.generate_ids(torch.tensor([[3]]), max_new_tokens=2, num_beams=9)
