"""`LLM.generate_async` streams whole characters, many prompts at once, and stops when its caller has left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opt_trt import LLM, RequestOutput, SamplingParams
from opt_trt.errors import UserError
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import StepInputs, StepOutputs
from opt_trt.text.tokenizer import load_tokenizer
from tests.unit._decoders import SumDecoder, expected_output
from tests.unit._llms import SPEC, letters, sums
from tests.unit._tokenizers import write_tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=6)


async def stream(llm: LLM, prompt: object, params: SamplingParams = GREEDY) -> list[RequestOutput]:
    return [output async for output in llm.generate_async(prompt, params)]


def test_outputs_grow_and_end_as_without_streaming(tmp_path: Path) -> None:
    with letters(tmp_path) as llm:
        seen = asyncio.run(stream(llm, "ab"))
        assert "".join(one.outputs[0].text_diff for one in seen) == seen[-1].outputs[0].text == "cdefgh"
        assert [i for one in seen for i in one.outputs[0].token_ids_diff] == seen[-1].outputs[0].token_ids
        assert [one.finished for one in seen] == [False] * (len(seen) - 1) + [True]
        whole = llm.generate("ab", GREEDY)[0].outputs[0]
        assert (seen[-1].outputs[0].token_ids, seen[-1].outputs[0].finish_reason) == (whole.token_ids, "length")


async def paced(llm: LLM, prompt: object, params: SamplingParams, go_on: threading.Semaphore) -> list[RequestOutput]:
    """A stream in which no step begins before the output of the one before it has been seen."""
    seen = []
    go_on.release()
    async for output in llm.generate_async(prompt, params):
        seen.append(output)
        go_on.release()
    return seen


def test_tokens_come_one_by_one(tmp_path: Path) -> None:
    go_on = threading.Semaphore(0)
    with letters(tmp_path, before_step=lambda inputs: go_on.acquire(timeout=60)) as llm:
        seen = asyncio.run(paced(llm, "a", SamplingParams(temperature=0, max_tokens=4), go_on))
    assert [one.outputs[0].text for one in seen] == ["b", "bc", "bcd", "bcde"]


def test_prompts_streamed_at_once_share_a_batch() -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)

    async def main(llm: LLM) -> list[list[RequestOutput]]:
        tasks = [asyncio.create_task(stream(llm, [1, i], params)) for i in range(6)]
        await asyncio.sleep(0)  # every task runs until it waits for its first token
        ready.set()
        return await asyncio.gather(*tasks)

    decoder, ready = SumDecoder(), threading.Event()
    decoder.before_step = lambda inputs: ready.wait(60)
    with sums(decoder) as llm:
        every = asyncio.run(main(llm))
    assert [tuple(seen[-1].outputs[0].token_ids) for seen in every] == [expected_output((1, i), 8) for i in range(6)]
    assert max(inputs.kv_lens.shape[0] for inputs in decoder.steps) == decoder.spec.max_batch_size


def test_several_outputs_of_a_prompt_grow_together() -> None:
    with sums() as llm:
        seen = asyncio.run(stream(llm, [1, 3], SamplingParams(n=3, seed=1, max_tokens=5, ignore_eos=True)))
        assert all([output.index for output in one.outputs] == [0, 1, 2] for one in seen)
        whole = llm.generate([1, 3], SamplingParams(n=3, seed=1, max_tokens=5, ignore_eos=True))[0]
        assert [o.token_ids for o in seen[-1].outputs] == [o.token_ids for o in whole.outputs]


class Bytes(SumDecoder):
    """Says the bytes of a text, one a token, and then the end."""

    text: tuple[int, ...]

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        outputs = super().step(inputs, kv_cache)
        said = [self.text[int(n) - 2] for n in inputs.kv_lens]  # the prompt is `</s>` and a letter
        return replace(outputs, logits=torch.nn.functional.one_hot(torch.tensor(said), self.spec.vocab_size).float())


@pytest.mark.parametrize(("stop", "deltas"), [(None, "é日本😀wéwx!"), ("wx", ["é", "日", "本", "😀", "wé"])])
def test_no_delta_is_half_a_character_or_the_beginning_of_a_stop_word(
    tmp_path: Path, stop: str | None, deltas: Sequence[str]
) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    go_on = threading.Semaphore(0)
    decoder = Bytes(replace(SPEC, max_seq_len=64), before_step=lambda inputs: go_on.acquire(timeout=60))
    decoder.text = (*tokenizer.encode_word("é日本😀wéwx!"), SPEC.end_id)
    with LLM.over(DecoderSession(decoder, KvCacheLimit()), tokenizer) as llm:
        seen = asyncio.run(paced(llm, "a", SamplingParams(temperature=0, max_tokens=40, stop=stop), go_on))
    assert [one.outputs[0].text_diff for one in seen if one.outputs[0].text_diff] == list(deltas)
    assert seen[-1].outputs[0].text == "".join(deltas)


def test_leaving_the_loop_ends_the_request() -> None:
    turn, go_on = threading.Event(), threading.Event()
    decoder = SumDecoder()

    def pause(inputs: StepInputs) -> None:
        if len(decoder.steps) >= 1:
            turn.set()
            go_on.wait(60)

    async def leave(llm: LLM) -> None:
        async with aclosing(llm.generate_async([1], SamplingParams(max_tokens=20, ignore_eos=True))) as outputs:
            async for _ in outputs:
                turn.wait(60)
                break
        go_on.set()

    decoder.before_step = pause
    with sums(decoder) as llm:
        asyncio.run(leave(llm))
        assert llm.generate([1, 3], SamplingParams(temperature=0, max_tokens=3))[0].outputs[0].token_ids == [4, 8, 0]
    assert len(decoder.steps) == 5  # two of the one that was left


def test_cancelling_a_task_ends_its_request() -> None:
    async def main(llm: LLM) -> None:
        task = asyncio.create_task(stream(llm, [1], SamplingParams(max_tokens=20, ignore_eos=True)))
        while not turn.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    def pause(inputs: StepInputs) -> None:
        if decoder.steps:
            turn.set()
            go_on.wait(60)

    turn, go_on = threading.Event(), threading.Event()
    decoder = SumDecoder(before_step=pause)
    with sums(decoder) as llm:
        asyncio.run(main(llm))
        llm.generate([1], SamplingParams(max_tokens=1))
    assert len(decoder.steps) == 3  # two of the one that was cancelled


def test_an_error_reaches_the_stream_that_caused_it() -> None:
    bans = SamplingParams(temperature=0, logit_bias={i: -float("inf") for i in range(16)})

    async def main(llm: LLM) -> list[object]:
        return await asyncio.gather(stream(llm, [1, 3]), stream(llm, [1], bans), return_exceptions=True)

    with sums() as llm:
        good, bad = asyncio.run(main(llm))
    assert good[-1].outputs[0].token_ids == [4, 8, 0, 0, 0, 0]
    assert isinstance(bad, UserError) and "prompt 0 has no token left" in str(bad)


def test_a_mistake_is_raised_at_the_first_output() -> None:
    with sums() as llm, pytest.raises(UserError, match="prompt 0 must be text or a list of token ids, found list"):
        asyncio.run(stream(llm, [[1], [2]]))


def test_closing_ends_a_stream_by_name() -> None:
    async def main(llm: LLM) -> None:
        async for _ in llm.generate_async([1], SamplingParams(max_tokens=20, ignore_eos=True)):
            await asyncio.to_thread(llm.close)

    decoder, begun = SumDecoder(), threading.Semaphore(1)
    decoder.before_step = lambda inputs: begun.acquire(timeout=0.5)
    with sums(decoder) as llm, pytest.raises(UserError, match="the engine is closed: open it again"):
        asyncio.run(main(llm))


def test_an_answer_is_awaited_or_waited_for(tmp_path: Path) -> None:
    async def awaited(llm: LLM) -> list[RequestOutput]:
        pending = [llm.generate_async(letter, GREEDY) for letter in "abc"]
        return [await pending[0], await pending[1].aresult(), *(await asyncio.gather(pending[2]))]

    with letters(tmp_path) as llm:
        expected = [answer.outputs[0].text for answer in llm.generate(["a", "b", "c"], GREEDY)]
        assert [answer.outputs[0].text for answer in asyncio.run(awaited(llm))] == expected
        pending = [llm.generate_async(letter, GREEDY, streaming=False) for letter in "abc"]
        assert [one.result(timeout=60).outputs[0].text for one in pending] == expected
        assert all(one.finished for one in pending) and pending[0].result() == pending[0].result()


def test_answers_that_are_waited_for_share_a_batch() -> None:
    ready, decoder = threading.Event(), SumDecoder()
    decoder.before_step = lambda inputs: ready.wait(60)
    with sums(decoder) as llm:
        pending = [llm.generate_async([1, i], max_tokens=8, temperature=0, ignore_eos=True) for i in range(4)]
        ready.set()
        ids = [tuple(one.result().outputs[0].token_ids) for one in pending]
    assert ids == [expected_output((1, i), 8) for i in range(4)]
    assert max(inputs.kv_lens.shape[0] for inputs in decoder.steps) == 4


def test_without_streaming_there_is_one_answer(tmp_path: Path) -> None:
    async def main(llm: LLM) -> list[RequestOutput]:
        return [one async for one in llm.generate_async(inputs="ab", sampling_params=GREEDY, streaming=False)]

    with letters(tmp_path) as llm:
        [answer] = asyncio.run(main(llm))
        assert answer.finished and answer.outputs[0].text == answer.outputs[0].text_diff == "cdefgh"


def test_beams_are_awaited() -> None:
    async def main(llm: LLM) -> tuple[RequestOutput, list[RequestOutput]]:
        params = SamplingParams(use_beam_search=True, n=2, best_of=3, max_tokens=4)
        whole = [one async for one in llm.generate_async([1, 3], params, streaming=False)]
        return await llm.generate_async([1, 3], params), whole

    with sums() as llm:
        awaited, whole = asyncio.run(main(llm))
        params = SamplingParams(use_beam_search=True, n=2, best_of=3, max_tokens=4)
        assert [awaited] == whole == llm.generate([1, 3], params)


def test_a_wait_may_end_before_the_answer_which_goes_on() -> None:
    go_on = threading.Event()
    with sums(SumDecoder(before_step=lambda inputs: go_on.wait(60))) as llm:
        pending = llm.generate_async([1, 3], temperature=0, max_tokens=3)
        with pytest.raises(TimeoutError, match=r"not finished after 0.01 seconds"):
            pending.result(timeout=0.01)
        go_on.set()
        assert pending.result(60).outputs[0].token_ids == [4, 8, 0]


@pytest.mark.parametrize("way", ["dropped", "aborted"])
def test_an_answer_nobody_waits_for_ends_its_request(way: str) -> None:
    turn, go_on, decoder = threading.Event(), threading.Event(), SumDecoder()

    def pause(inputs: StepInputs) -> None:
        turn.set()
        go_on.wait(60)

    decoder.before_step = pause
    with sums(decoder) as llm:
        pending = llm.generate_async([1], max_tokens=20, ignore_eos=True)
        turn.wait(60)
        if way == "aborted":
            pending.abort()
            with pytest.raises(UserError, match="the request was aborted"):
                pending.result()
        else:
            del pending
        go_on.set()
        llm.generate([1], SamplingParams(max_tokens=1))
    assert len(decoder.steps) == 2


def test_an_error_stays_with_its_answer() -> None:
    bans = SamplingParams(temperature=0, logit_bias={i: -float("inf") for i in range(16)})
    with sums() as llm:
        pending = llm.generate_async([1], bans)
        for _ in range(2):
            with pytest.raises(UserError, match="prompt 0 has no token left"):
                pending.result(60)
        with pytest.raises(UserError, match="prompt 0 is empty"):
            llm.generate_async([])


def test_a_request_may_have_a_name_of_its_callers() -> None:
    with sums() as llm:
        assert llm.generate_async([1], GREEDY, "mine").result().request_id == "mine"
        others = [llm.generate_async([1], GREEDY) for _ in range(2)]
        assert others[0].request_id != others[1].result().request_id == others[1].request_id
