"""`LLM` answers as vLLM's and TensorRT-LLM's users expect, from any number of threads."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import e, log
from pathlib import Path

import pytest
import torch

from opt_trt import LLM, SamplingParams, UserError
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from opt_trt.text.tokenizer import load_tokenizer
from tests._processes import heeded_ctrl_c, run_python
from tests.unit._decoders import SumDecoder, expected_output
from tests.unit._llms import SPEC, NextLetter, letters, sums
from tests.unit._tokenizers import VOCAB_SIZE, ids_of, write_tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=3)
END = SPEC.end_id


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    with letters(tmp_path) as made:
        yield made


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import opt_trt, sys; from opt_trt import SamplingParams; SamplingParams(); assert 'torch' not in sys.modules"
    )
    assert run_python("-c", code).returncode == 0


def test_an_answer_has_the_fields_people_know(llm: LLM) -> None:
    [answer] = llm.generate("ab", GREEDY)
    assert (answer.prompt, answer.prompt_token_ids, answer.finished) == ("ab", [END, *ids_of("ab")], True)
    [output] = answer.outputs
    assert (output.index, output.text, output.token_ids) == (0, "cde", [*ids_of("cde")])
    assert (output.finish_reason, output.stop_reason, output.logprobs, output.cumulative_logprob) == (
        "length", None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [
        ("ab", ["cde"]),
        (["ab", "x"], ["cde", "yz{"]),
        (list(ids_of("ab")), ["cde"]),
        ([list(ids_of("ab")), "x", ids_of("f")], ["cde", "yz{", "ghi"]),
        ([], []),
    ],
)
def test_prompts_are_text_or_ids_one_or_several(llm: LLM, prompts: object, texts: list[str]) -> None:
    assert [answer.outputs[0].text for answer in llm.generate(prompts, GREEDY)] == texts


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    answers = llm.generate(["a", "a"], [GREEDY, SamplingParams(temperature=0, max_tokens=1)])
    assert [answer.outputs[0].text for answer in answers] == ["bcd", "b"]


def test_sixteen_tokens_are_drawn_unless_told_otherwise() -> None:
    with sums() as llm:
        first, second = (llm.generate([1, 3], SamplingParams(ignore_eos=True))[0].outputs[0] for _ in range(2))
        assert len(first.token_ids) == len(second.token_ids) == 16 and first.token_ids != second.token_ids


def test_max_tokens_none_fills_the_engine() -> None:
    with sums() as llm:
        params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
        assert len(llm.generate([1, 3], params)[0].outputs[0].token_ids) == 22


@pytest.mark.parametrize(
    ("params", "text", "ids", "reason"),
    [
        ({"stop": "e"}, "cd", "cde", "e"),
        ({"stop": ["xyz", "de"]}, "c", "cde", "de"),
        ({"stop_token_ids": ids_of("e")}, "cd", "cde", ids_of("e")[0]),
        ({"stop": "z", "stop_token_ids": ids_of("d")}, "c", "cd", ids_of("d")[0]),
        ({"stop": ["x", "cd"], "bad_words": "e"}, "", "cd", "cd"),
    ],
)
def test_what_stops_an_output_is_in_its_ids_and_not_in_its_text(
    llm: LLM, params: dict, text: str, ids: str, reason: str | int
) -> None:
    [output] = llm.generate("ab", SamplingParams(temperature=0, max_tokens=9, **params))[0].outputs
    assert (output.text, output.token_ids) == (text, [*ids_of(ids)])
    assert (output.finish_reason, output.stop_reason) == ("stop", reason)


def test_the_end_id_stops_without_a_reason_unless_ignored() -> None:
    with sums() as llm:
        [ended] = llm.generate([1, 1], SamplingParams(temperature=0, max_tokens=4))[0].outputs
        assert (ended.token_ids, ended.finish_reason, ended.stop_reason) == ([END], "stop", None)
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        assert llm.generate([1, 1], params)[0].outputs[0].token_ids == [*expected_output((1, 1), 4)]
        params = SamplingParams(temperature=0, max_tokens=4, min_tokens=2)
        assert len(llm.generate([1, 1], params)[0].outputs[0].token_ids) >= 2


def test_several_outputs_of_a_prompt_are_one_answer_and_differ() -> None:
    params = SamplingParams(n=3, max_tokens=8, seed=5, ignore_eos=True)
    with sums() as llm:
        answers = llm.generate([[1, 3], [4]], params)
        assert [[output.index for output in answer.outputs] for answer in answers] == [[0, 1, 2]] * 2
        drawn = [tuple(output.token_ids) for output in answers[0].outputs]
        assert len(set(drawn)) == 3
        alone = llm.generate([1, 3], SamplingParams(max_tokens=8, seed=5, ignore_eos=True))
        assert tuple(alone[0].outputs[0].token_ids) == drawn[0]


def test_without_a_seed_requests_differ_and_programs_do_not() -> None:
    def two() -> list[list[int]]:
        with sums() as llm:
            return [llm.generate([1], SamplingParams(ignore_eos=True))[0].outputs[0].token_ids for _ in range(2)]

    first, again = two(), two()
    assert first == again and first[0] != first[1]


def test_log_probabilities_are_told_by_token(llm: LLM) -> None:
    [output] = llm.generate("ab", SamplingParams(temperature=0, max_tokens=2, logprobs=2))[0].outputs
    likely = 9 - log(e**9 + VOCAB_SIZE - 1)  # one token has a logit of 9, the others 0
    assert output.logprobs is not None and [len(token) for token in output.logprobs] == [2, 2]
    [c] = ids_of("c")
    chosen = output.logprobs[0][c]
    assert (chosen.rank, chosen.decoded_token) == (1, "c")
    assert chosen.logprob == pytest.approx(likely, abs=1e-5)  # fp32 logarithms
    assert output.cumulative_logprob == pytest.approx(2 * likely, abs=1e-5)


@pytest.mark.parametrize(
    "params", [{"bad_words": ["b"]}, {"repetition_penalty": 10.0}, {"logit_bias": {ids_of("b")[0]: -float("inf")}}]
)
def test_bans_and_penalties_reach_the_sampler(llm: LLM, params: dict) -> None:
    [x] = ids_of("x")
    given = {"temperature": 0, "max_tokens": 2} | params
    given["logit_bias"] = {x: 5.0} | given.get("logit_bias", {})  # what comes next has a logit of 9
    assert llm.generate("ba", SamplingParams(**given))[0].outputs[0].text == "xy"


def test_a_stop_word_may_be_a_special_token_that_is_not_shown(llm: LLM) -> None:
    [b] = ids_of("b")
    for params in ({"stop": "<pad>"}, {"stop": ["x", "b<pad>"]}, {"stop": "<pad>", "skip_special_tokens": False}):
        given = SamplingParams(temperature=0, max_tokens=6, logit_bias={1: 50.0, b: 99.0}, bad_words=["bb"], **params)
        [output] = llm.generate("a", given)[0].outputs
        stop = params["stop"] if isinstance(params["stop"], str) else "b<pad>"
        assert (output.token_ids, output.finish_reason, output.stop_reason) == ([b, 1], "stop", stop)
        assert output.text == ("" if "b" in stop else "b")


def test_the_model_may_have_several_end_ids(tmp_path: Path) -> None:
    [c, e] = ids_of("ce")
    decoder = NextLetter(replace(SPEC, end_token_ids=(e, 2)))
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    with LLM.over(DecoderSession(decoder, KvCacheLimit()), tokenizer) as llm:
        [output] = llm.generate("ab", SamplingParams(temperature=0, max_tokens=5))[0].outputs
        assert (output.text, output.token_ids[-1], output.finish_reason) == ("cd", e, "stop")
        assert output.stop_reason is None
        [output] = llm.generate("ab", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))[0].outputs
        assert output.text == "cdefg"
        assert llm.generate_ids(torch.tensor([[2, c]]), max_new_tokens=9).tolist() == [[2, c, *ids_of("de")]]


def test_a_begin_token_is_needed_for_text_that_begins_with_one(tmp_path: Path) -> None:
    directory = write_tokenizer(tmp_path, bos_token=None)
    greedy = {"temperature": 0, "max_tokens": 2}
    with LLM.over(DecoderSession(NextLetter(SPEC), KvCacheLimit()), load_tokenizer(directory)) as llm:
        assert llm.generate([[*ids_of("a")]], SamplingParams(**greedy))[0].outputs[0].text == "bc"
        plain = SamplingParams(add_special_tokens=False, **greedy)
        assert llm.generate("a", plain)[0].prompt_token_ids == [*ids_of("a")]
        with pytest.raises(UserError, match=r"names no bos_token .* give add_special_tokens=False"):
            llm.generate("a", SamplingParams(**greedy))


def test_special_tokens_are_shown_when_asked_for(llm: LLM) -> None:
    special = {"temperature": 0, "max_tokens": 2}
    assert llm.generate([0], SamplingParams(ignore_eos=True, **special))[0].outputs[0].text == ""
    shown = SamplingParams(ignore_eos=True, skip_special_tokens=False, **special)
    assert llm.generate([0], shown)[0].outputs[0].text == "<pad></s>"


def test_threads_are_answered_together_and_each_its_own(tmp_path: Path) -> None:
    begun = threading.Event()
    with letters(tmp_path, before_step=lambda inputs: begun.wait(60)) as llm, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(llm.generate, [letter] * 2, GREEDY) for letter in "abcdefgh"]
        begun.set()
        texts = [[one.outputs[0].text for one in answer.result(60)] for answer in answers]
    assert texts == [["".join(chr(ord(c) + i) for i in (1, 2, 3))] * 2 for c in "abcdefgh"]


def test_an_error_reaches_the_caller_that_caused_it_with_its_own_number() -> None:
    bans = SamplingParams(temperature=0, logit_bias={i: -float("inf") for i in range(16)})
    with sums() as llm, ThreadPoolExecutor(2) as pool:
        bad = pool.submit(llm.generate, [[1], [2]], [SamplingParams(), bans])
        good = pool.submit(llm.generate, [1, 3], SamplingParams(temperature=0, max_tokens=3))
        assert good.result(60)[0].outputs[0].token_ids == [4, 8, 0]
        with pytest.raises(UserError, match="prompt 1 has no token left to choose after 0 new ones; relax logit_bias"):
            bad.result(60)


def test_a_broken_decoder_is_no_mistake_of_the_caller() -> None:
    def fail(inputs: object) -> None:
        raise ValueError("out of order")

    with sums(SumDecoder(before_step=fail)) as llm, pytest.raises(RuntimeError, match=r"prompt 0 .*: out of order"):
        llm.generate([1])


@heeded_ctrl_c()
def test_ctrl_c_ends_the_requests_of_a_waiting_caller_whichever_thread_it_arrives_in() -> None:
    decoder, interrupted = SumDecoder(), threading.Event()

    def interrupt(inputs: object) -> None:
        if len(decoder.steps) == 1:
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # the stepping one: no wait of the caller's ends
            assert interrupted.wait(60)

    decoder.before_step = interrupt
    with sums(decoder) as llm:
        with pytest.raises(KeyboardInterrupt):
            llm.generate([1], SamplingParams(max_tokens=20, ignore_eos=True))
        interrupted.set()
        assert llm.generate([1, 3], SamplingParams(temperature=0, max_tokens=3))[0].outputs[0].token_ids == [4, 8, 0]
    assert len(decoder.steps) == 5  # two of the one that was interrupted


def test_closing_leaves_no_thread_and_a_closed_engine_says_so() -> None:
    before = threading.active_count()
    llm = sums()
    assert threading.active_count() == before + 1
    with llm:
        llm.generate([1])
    llm.close()
    assert threading.active_count() == before
    with pytest.raises(UserError, match="the engine is closed: open it again"):
        llm.generate([1])


def test_an_engine_nobody_holds_is_closed() -> None:
    before = threading.active_count()
    llm = sums()
    llm.generate([1])
    del llm
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("prompts", "params", "says"),
    [
        ("a" * 20, {}, "prompt 0 has 21 tokens, the engine takes 16; lower the number of prompt tokens or build"),
        ("a", {"max_tokens": 99}, "the engine takes 24; lower max_tokens or"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([999], {}, "prompt 0 has token id 999, the vocabulary is 0 to 260"),
        ({"prompt": "a"}, {}, "expected prompts as text, token ids or a list of these, found dict"),
        ([1.5], {}, "prompt 0 must be text or a list of token ids, found float"),
        ("a", {"max_tokens": 2, "min_tokens": 3}, "at least 3 and at most 2 new tokens; lower min_tokens or raise max"),
        ("a", {"stop": [""]}, "an empty stop word"),
        ("a", {"bad_words": ""}, "bad_words has a word without tokens"),
        ("a\udce9", {}, r"expected text, found '.udce9' at character 1"),
        ("a", {"stop": "\ud800"}, r"expected text, found '.ud800' at character 0"),
        ("a", {"stop_token_ids": [999]}, "stops at token id 999"),
    ],
)
def test_mistakes_are_named_in_the_words_of_the_interface(
    llm: LLM, prompts: object, params: dict, says: str
) -> None:  # fmt: skip
    with pytest.raises(UserError, match=says):
        llm.generate(prompts, SamplingParams(**params))


def test_parameters_are_for_all_prompts_or_for_each(llm: LLM) -> None:
    with pytest.raises(UserError, match="expected one SamplingParams for all or 3 for as many prompts, found 2"):
        llm.generate(["a", "b", "c"], [GREEDY, GREEDY])


@pytest.mark.parametrize("params", [{"stop": "x"}, {"bad_words": ["x"]}])
def test_words_need_a_tokenizer(params: dict) -> None:
    with sums() as llm, pytest.raises(UserError, match="needs a tokenizer: give tokenizer=DIRECTORY, or token ids"):
        llm.generate([1], SamplingParams(**params))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 2.5}, {"max_tokens": float("nan")}, {"max_tokens": True}, {"logprobs": True},
        {"logprobs": 1.5}, {"top_k": 2.5}, {"top_k": 50.0}, {"no_repeat_ngram_size": 2.0}, {"n": 2.0}, {"seed": 1.5},
        {"use_beam_search": True, "best_of": 2.5}, {"stop": [5]}, {"stop_token_ids": 5}, {"bad_words": [5]},
        {"logit_bias": {"5": 1}}, {"temperature": "1"}, {"ignore_eos": 1},
    ],
    ids=str,
)  # fmt: skip
def test_an_option_of_another_type_is_refused_before_it_reaches_requests_beside_it(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"^{[*wrong][-1]} must be .*, found "):
        SamplingParams(**wrong)


@pytest.mark.parametrize("prompt", [[True, 3], [[1, 3], [1, False]]], ids=str)
def test_truth_values_are_no_token_ids(prompt: object) -> None:
    with sums() as llm, pytest.raises(UserError, match=r"expected|must be"):
        llm.generate(prompt, GREEDY)


def test_a_forked_process_is_told_to_open_the_engine_itself() -> None:
    with sums() as llm:
        if (child := os.fork()) == 0:
            signal.alarm(60)  # it waited for ever
            try:
                llm.generate([1, 3], GREEDY)
            except UserError as error:
                os._exit(0 if "open the engine here" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert llm.generate([1, 3], GREEDY)[0].outputs[0].token_ids  # the parent goes on
