"""`LLM` answers as vLLM's and TensorRT-LLM's users expect, from any number of threads."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import e, log
from pathlib import Path

import numpy as np
import pandas as pd
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


A = ids_of("ab")


@pytest.mark.parametrize(
    ("prompts", "count"),
    [
        ({"prompt": "ab"}, 1), ([{"prompt": "ab"}, {"prompt_token_ids": A}], 2), ({"prompt_token_ids": np.array(A)}, 1),
        (np.array(A), 1), (torch.tensor(A), 1), (torch.tensor([A, A]), 2), (np.array([A]), 1), ([np.array(A)] * 2, 2),
        ([np.int64(i) for i in A], 1), (pd.Series(A), 1), (pd.Series(["ab", "ab"]), 2), (np.array(["ab", "ab"]), 2),
        ({"input_ids": A, "attention_mask": [1, 1]}, 1), ((A, A), 2),
    ],
    ids=lambda x: type(x).__name__,
)  # fmt: skip
def test_prompts_are_dictionaries_and_arrays_too(llm: LLM, prompts: object, count: int) -> None:
    assert [answer.outputs[0].text for answer in llm.generate(prompts, GREEDY)] == ["cde"] * count


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((), {"prompts": "ab", "sampling_params": GREEDY}),
        ((), {"inputs": "ab", "sampling_params": GREEDY, "use_tqdm": False}),
        ((), {"prompt_token_ids": [A], "sampling_params": GREEDY, "lora_request": None}),
        (("ab",), {"temperature": 0, "max_tokens": 3}),
        (("ab",), {"do_sample": False, "max_new_tokens": 3, "priority": 0}),
        (("ab", {"temperature": 0, "max_tokens": 3}, False), {}),
        (("ab", [{"temperature": 0, "max_tokens": 3}]), {}),
    ],
    ids=str,
)
def test_calls_are_written_as_other_tools_write_them(llm: LLM, given: tuple, named: dict) -> None:
    assert llm.generate(*given, **named)[0].outputs[0].text == "cde"


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({}, "generate needs prompts: text, token ids"),
        ({"prompts": "a", "inputs": "b"}, "inputs is called prompts here, and generate was given both"),
        (
            {"prompts": "a", "sampling_params": GREEDY, "max_tokens": 3},
            "SamplingParams and max_tokens beside them; put",
        ),
        ({"prompts": "a", "lora_request": 5}, "generate has no lora_request=5: adapters are not loaded"),
        ({"prompts": "a", "unheard_of": 5}, "SamplingParams has no option unheard_of"),
        ({"prompts": "a", "sampling_params": 5}, "expected SamplingParams or a dictionary of options, found 5"),
        ({"prompts": "a", "sampling_params": {"top_k": 2.5}}, "^top_k must be an integer, found 2.5"),
    ],
    ids=str,
)
def test_calls_that_cannot_be_answered_say_why(llm: LLM, named: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        llm.generate(**named)


def test_answers_have_numbers_of_their_own_and_times(llm: LLM) -> None:
    before = time.time()
    first, second = llm.generate(["a", "b"], SamplingParams(n=2, max_tokens=3))
    assert first.request_id != second.request_id
    for answer in (first, second):
        times = answer.metrics
        assert times is not None and times.first_token_time is not None and times.last_token_time is not None
        assert before <= times.arrival_time <= times.first_token_time <= times.last_token_time <= time.time()
        assert times.finished_time == times.last_token_time


def test_only_allowed_tokens_are_chosen(llm: LLM) -> None:
    x, y = ids_of("xy")
    for way in ({"temperature": 0}, {"seed": 1}, {"use_beam_search": True, "best_of": 2}):
        params = SamplingParams(allowed_token_ids=[x, y], max_tokens=8, **way)
        assert set(llm.generate("a", params)[0].outputs[0].text) <= {"x", "y"}
    with pytest.raises(UserError, match="token id 999, the vocabulary is 0 to 260"):
        llm.generate("a", SamplingParams(allowed_token_ids=[999]))


@pytest.mark.parametrize(
    ("prompt", "most", "ids"), [("abcd", 3, "cd"), ([5, 6, 7, 8], 3, None), ("a" * 30, -1, "a" * 15)]
)
def test_prompts_are_cut_when_asked(llm: LLM, prompt: object, most: int, ids: str | None) -> None:
    expected = [6, 7, 8] if ids is None else [END, *ids_of(ids)]
    params = SamplingParams(temperature=0, max_tokens=1, truncate_prompt_tokens=most)
    assert llm.generate(prompt, params)[0].prompt_token_ids == expected


def test_texts_are_left_out_and_stop_words_kept_when_asked(llm: LLM) -> None:
    [e] = ids_of("e")
    given = {"temperature": 0, "max_tokens": 9}
    [output] = llm.generate("ab", SamplingParams(detokenize=False, stop_token_ids=[e], **given))[0].outputs
    assert (output.text, output.token_ids, output.stop_reason) == ("", [*ids_of("cde")], e)
    for stop in ({"stop": "de"}, {"stop_token_ids": [e]}):
        [output] = llm.generate("ab", SamplingParams(include_stop_str_in_output=True, **stop, **given))[0].outputs
        assert (output.text, output.finish_reason) == ("cde", "stop")


def test_a_drawn_token_has_its_rank(llm: LLM) -> None:
    [output] = llm.generate("ab", SamplingParams(seed=1, temperature=50.0, max_tokens=4, logprobs=0))[0].outputs
    assert output.logprobs is not None
    for token_id, told in zip(output.token_ids, output.logprobs, strict=True):
        assert told[token_id].rank == (1 if told[token_id].logprob > -0.1 else 2)  # all others are equally unlikely


@pytest.mark.parametrize("way", [{"temperature": 0}, {"n": 2, "seed": 1}, {"use_beam_search": True, "best_of": 2}])
def test_log_probabilities_of_a_prompt_are_told_when_asked_for(tmp_path: Path, way: dict) -> None:
    spec = replace(SPEC, gather_context_logits=True, max_num_tokens=3)  # the prompt takes two steps
    session = DecoderSession(NextLetter(spec), KvCacheLimit())
    with LLM.over(session, load_tokenizer(write_tokenizer(tmp_path))) as llm:
        [answer] = llm.generate("abd", SamplingParams(prompt_logprobs=1, max_tokens=2, **way))
        assert llm.generate("abd", SamplingParams(max_tokens=2))[0].prompt_logprobs is None
    assert answer.prompt_logprobs is not None and answer.prompt_logprobs[0] is None
    a, b, c, d = ids_of("abcd")
    likely, unlikely = 9 - log(e**9 + VOCAB_SIZE - 1), -log(e**9 + VOCAB_SIZE - 1)
    told = [one for one in answer.prompt_logprobs if one is not None]
    assert [[*one] for one in told][1:] == [[b], [d, c]] and a in told[0]
    assert (told[1][b].rank, told[1][b].decoded_token, told[2][d].rank, told[2][c].rank) == (1, "b", 2, 1)
    assert told[1][b].logprob == pytest.approx(likely, abs=1e-5)
    assert told[2][d].logprob == pytest.approx(unlikely, abs=1e-5)
    assert len(answer.outputs) == way.get("n", 1)


def test_engines_that_keep_no_logits_of_prompts_say_so(llm: LLM) -> None:
    with pytest.raises(UserError, match="asks for context logits; build the engine with gather_context_logits"):
        llm.generate("a", SamplingParams(prompt_logprobs=0))


@pytest.mark.parametrize("name", ["chat", "beam_search", "encode", "llm_engine"])
def test_what_other_tools_have_is_answered_by_name(llm: LLM, name: str) -> None:
    assert not hasattr(llm, name)
    with pytest.raises(UserError, match=f"LLM has no {name}: "):
        getattr(llm, name)
    with pytest.raises(AttributeError, match="'LLM' object has no attribute 'unheard_of'"):
        _ = llm.unheard_of


def test_the_tokenizer_is_there_and_shutdown_closes(llm: LLM) -> None:
    assert llm.get_tokenizer() is llm.tokenizer and llm.tokenizer.encode("ab", add_special_tokens=False) == [*A]
    llm.shutdown()
    with pytest.raises(UserError, match="the engine is closed"):
        llm.generate("a")
    with sums() as without, pytest.raises(UserError, match="has no tokenizer: give LLM"):
        without.get_tokenizer()


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
        ({"text": "a"}, {}, "prompt 0 has no option text; known are prompt, prompt_token_ids"),
        ({"prompt": "a", "multi_modal_data": [1]}, {}, "prompt 0 has no multi_modal_data=.1.: OPT reads text only"),
        (5, {}, "expected prompts as text, token ids, a dictionary with one of the two, or a list of these, found 5"),
        (b"ab", {}, "found b'ab'"),
        (np.array(5), {}, "found 5"),
        ([1.5], {}, "prompt 0 must be text or a list of token ids, found float"),
        ([[1, 1.5]], {}, "prompt 0 must be text or a list of token ids, found list with 1.5 in it"),
        (torch.tensor([1.5, 2]), {}, "prompt 0 must be text or a list of token ids, found float"),
        ([None], {}, "prompt 0 must be text or a list of token ids, found NoneType"),
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


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda llm: llm.generate("a", {1: 2}), "SamplingParams takes options by their names, which are text, found 1"),
        (lambda llm: llm.generate({1: "a"}), "prompt 0 takes options by their names, which are text, found 1"),
        (lambda llm: llm.generate("a", use_tqdm="no"), "use_tqdm must be True or False or None, found 'no'"),
        (lambda llm: llm.generate("a", use_tqdm=np.array([1, 2])), "use_tqdm must be True or False or None, found arr"),
        (lambda llm: llm.generate(pd.DataFrame({"a": [1]})), "expected prompts as text, .* found DataFrame"),
        (lambda llm: llm.generate(torch.ones(2, device="meta")), "expected prompts as text, .* found tensor"),
        (lambda llm: llm.generate("a", beam_width=np.array([1, 2])), r"^n must be an integer, found \[1, 2\]"),
        (lambda llm: llm.generate("a", max_tokens=2, max_new_tokens=np.array([1, 2])), "given both; drop one of"),
        (lambda llm: llm.generate_async("a", streaming="no"), "streaming must be True or False or None, found 'no'"),
        (lambda llm: llm.generate_async("a", None, [5]), "request_id must be text or an integer or None, found .5."),
        (lambda llm: llm.generate_async("a").result("5"), "timeout must be a number or None, found '5'"),
        (lambda llm: llm.generate_async("a").result(10**5000), "timeout must be a number or None, found one of"),
        (lambda llm: llm.generate_ids([[4]], None, {1: 2}), "generate_ids takes options by their names, which"),
        (lambda llm: llm.generate_ids([[4]], return_dict_in_generate="no"), "return_dict_in_generate must be True or"),
        (lambda llm: llm.generate_ids([[4]], pad_token_id=2**63), "pad_token_id must be a number of 64 bits, found 92"),
        (lambda llm: llm.generate_ids([[4]], max_new_tokens=np.array([1, 2])), "max_new_tokens must be an integer"),
        (lambda llm: llm.generate_ids([[4]], logits_processor=[10**5000]), "has no logits_processor=list: "),
        (lambda llm: llm.generate_ids([[4]], sequence_bias=np.float64("nan")), r"no sequence_bias=np.float64\(nan\)"),
        (lambda llm: llm.generate_ids(torch.ones(1, 2, device="meta")), "input_ids must be integers of shape"),
    ],
)  # fmt: skip
def test_a_call_with_an_argument_of_another_type_is_refused_in_one_line(
    llm: LLM, call: Callable[[LLM], object], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        call(llm)


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


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_llm_says_why_it_cannot_be_copied(copies: Callable[[object], object]) -> None:
    with sums() as llm, pytest.raises(UserError, match=r"an LLM cannot be copied or pickled: .* open LLM"):
        copies(llm)


AT_EXIT = """
import atexit

def last():
    try:
        llm.generate([1])
    except UserError as error:
        print(error)

atexit.register(last)  # before all others: called after the engine is closed
from opt_trt import UserError
from tests.unit._llms import sums
llm = sums()
"""


def test_at_the_end_of_the_program_the_engine_is_closed_by_name() -> None:
    done = run_python("-c", AT_EXIT)
    assert (done.returncode, done.stdout) == (0, "the engine is closed: open it again\n"), done.stderr
