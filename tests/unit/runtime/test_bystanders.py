"""Whatever goes wrong with one request, the requests beside it get what they would get alone."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from opt_trt import LLM, SamplingParams, UserError
from opt_trt.runtime.request import RequestFailed
from opt_trt.runtime.sampling import choose as choosing
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import StepInputs, StepOutputs
from tests.unit._decoders import SumDecoder, expected_output
from tests.unit._llms import sums

CURSED = 13  # a token that makes the logits behind it NaN
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
DRAWN = SamplingParams(seed=7, max_tokens=6, ignore_eos=True)
WAYS = {
    "greedy": {"temperature": 0},
    "drawn": {},
    "filtered": {"top_p": 0.9, "top_k": 3},
    "penalized": {"temperature": 0, "repetition_penalty": 1.1},
    "beams": {"use_beam_search": True, "best_of": 2},
    "candidates": {"penalty_alpha": 0.5, "top_k": 2},
    "explained": {"logprobs": 2},
}


class Cursed(SumDecoder):
    """Sums that are no numbers for a sequence whose newest token is cursed, as activations that overflow are."""

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        outputs = super().step(inputs, kv_cache)
        bad = inputs.input_ids[inputs.last_token_ids] == CURSED
        return replace(outputs, logits=outputs.logits.masked_fill(bad.unsqueeze(1), float("nan")))


@pytest.fixture
def cursed() -> Iterator[LLM]:
    with sums(Cursed()) as llm:
        yield llm


def ids_of(llm: LLM, prompt: list[int], params: SamplingParams) -> list[int]:
    return llm.generate(prompt, params)[0].outputs[0].token_ids


@pytest.mark.parametrize("way", WAYS)
def test_numbers_that_overflow_fail_their_own_request_alone(cursed: LLM, way: str) -> None:
    bad = SamplingParams(max_tokens=6, ignore_eos=True, **WAYS[way])
    alone = [ids_of(cursed, [1, 3], params) for params in (GREEDY, DRAWN)]
    with ThreadPoolExecutor(4) as pool:
        broken = [pool.submit(ids_of, cursed, [1, CURSED], bad) for _ in range(2)]
        beside = [pool.submit(ids_of, cursed, [1, 3], params) for params in (GREEDY, DRAWN)]
        assert [one.result(60) for one in beside] == alone
        for one in broken:
            with pytest.raises(UserError, match="prompt 0 failed: expected finite logits, the decoder returned nan"):
                one.result(60)


BAD = [
    (["x"], {}), ([[1.5]], {}), ([[99]], {}), ([[True]], {}), ([[]], {}), ([None], {}), ([[1]], {"max_tokens": 2.5}),
    ([[1]], {"logprobs": True}), ([[1]], {"top_k": 2.5}), ([[1]], {"temperature": float("nan")}),
    ([[1]], {"top_p": float("nan")}), ([[1]], {"n": 10**6}), ([[1]], {"logit_bias": {99: 1.0}}),
    ([[1]], {"logit_bias": {3: float("nan")}}), ([[1]], {"stop": ["x"]}), ([[1]], {"seed": 1.5}),
    ([[1]], {"repetition_penalty": float("inf")}), ([[1]], {"stop_token_ids": [99]}), ([[1] * 40], {}),
    ([[1]], {"seed": 10**5000}), ([[10**5000]], {}), ([[1]], {"top_k": 10**400}), ([[1]], {"temperature": 10**400}),
    ([[1]], {"max_tokens": 10**9}), ([[1]], {"n": 3, "use_beam_search": True, "best_of": 9}), ([[1, CURSED]], {}),
    ([[1]], {"temperature": 0, "logit_bias": {i: -float("inf") for i in range(16)}}),
]  # fmt: skip


@pytest.mark.parametrize("number", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_bad_requests_hurt_none_beside_them(cursed: LLM, number: int) -> None:
    done = threading.Event()
    greedy, drawn = (ids_of(cursed, [1, 3], params) for params in (GREEDY, DRAWN))

    def beside() -> int:
        served = 0
        while not done.is_set():
            assert (ids_of(cursed, [1, 3], GREEDY), ids_of(cursed, [1, 3], DRAWN)) == (greedy, drawn)
            served += 1
        return served

    with ThreadPoolExecutor(3) as pool:
        bystanders = [pool.submit(beside) for _ in range(3)]
        try:
            for index in range(number):
                prompts, params = BAD[index % len(BAD)]
                with pytest.raises(UserError):
                    cursed.generate(prompts, SamplingParams(**params))
        finally:
            done.set()
        assert all(one.result(60) for one in bystanders)


def test_what_raises_for_one_request_fails_that_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = choosing.process

    def process(logits: torch.Tensor, sequences: Sequence[TokenSequence], table: object = None) -> torch.Tensor:
        if any(s.request.sampling.presence_penalty for s in sequences):
            raise IndexError("list index out of range")
        return plain(logits, sequences, table)

    monkeypatch.setattr(choosing, "process", process)
    bad = SamplingParams(presence_penalty=1.0)
    params = SamplingParams(temperature=0, repetition_penalty=1.1, max_tokens=6, ignore_eos=True)
    with sums() as llm, ThreadPoolExecutor(4) as pool:
        alone = [ids_of(llm, [1, 3], one) for one in (params, DRAWN)]
        broken = pool.submit(llm.generate, [[1]] * 2, bad)
        beside = [pool.submit(ids_of, llm, [1, 3], one) for one in (params, DRAWN)]
        assert [one.result(60) for one in beside] == alone
        with pytest.raises(UserError, match="prompt 0 failed: IndexError: list index out of range"):
            broken.result(60)


def test_a_step_that_raises_fails_those_in_it_and_not_those_that_wait() -> None:
    decoder = SumDecoder()
    joined = threading.Event()

    def fail_once(inputs: StepInputs) -> None:
        assert joined.wait(60)
        if not decoder.steps:
            decoder.steps.append(inputs)
            raise MemoryError("no memory")

    decoder.before_step = fail_once
    with sums(decoder) as llm, ThreadPoolExecutor(2) as pool:
        full = pool.submit(llm.generate, [[1]] * 4, GREEDY)  # as many as the batch holds
        while not llm._worker._commands.empty() or not llm._factory.session.in_flight._scheduler.running:
            pass
        waiting = pool.submit(ids_of, llm, [1, 3], GREEDY)
        while llm._worker._commands.empty():
            pass
        joined.set()
        with pytest.raises(RuntimeError, match="no memory"):
            full.result(60)
        assert waiting.result(60) == [*expected_output((1, 3), 6)]


def test_many_outputs_of_one_caller_hold_up_no_other() -> None:
    decoder = SumDecoder()
    first, go_on = threading.Event(), threading.Event()

    def pause(inputs: StepInputs) -> None:
        first.set()
        assert go_on.wait(60)

    decoder.before_step = pause
    params = SamplingParams(n=100, seed=1, max_tokens=2, ignore_eos=True)
    with sums(decoder) as llm, ThreadPoolExecutor(2) as pool:
        many = pool.submit(llm.generate, [1, 3], params)
        assert first.wait(60)
        other = pool.submit(lambda: (ids_of(llm, [1, 3], GREEDY), len(decoder.steps)))
        while llm._worker._commands.empty():
            pass
        go_on.set()
        ids, steps = other.result(60)
        assert ids == [*expected_output((1, 3), 6)] and steps < 20
        outputs = many.result(60)[0].outputs
        assert [output.index for output in outputs] == [*range(100)] and len(decoder.steps) > 40


def test_outputs_are_bounded() -> None:
    with pytest.raises(UserError, match=r"^n must be at most 16384, found 1000000"):
        SamplingParams(n=10**6)
    with sums() as llm, pytest.raises(UserError, match=r"^num_return_sequences must be at most 16384, found 1000000"):
        llm.generate_ids(torch.tensor([[3]]), max_new_tokens=2, do_sample=True, num_return_sequences=10**6)


def test_errors_of_requests_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(RequestFailed(3, "is empty")))
    assert (type(error), error.index, error.problem, str(error)) == (RequestFailed, 3, "is empty", "prompt 3 is empty")


def test_a_failed_request_leaves_no_blocks_taken() -> None:
    session = DecoderSession(Cursed(), KvCacheLimit())
    with LLM.over(session) as llm:
        for way in WAYS.values():
            with pytest.raises(UserError, match="finite logits"):
                llm.generate([1, CURSED], SamplingParams(max_tokens=6, ignore_eos=True, **way))
        assert session._pool.num_free == session._pool.num_blocks
