"""Every option reaches the argument that means it in TensorRT-LLM, or is refused by name; nothing is passed over."""

from __future__ import annotations

import csv
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from opt_trt.backends.trtllm.keywords import AT_EACH_CALL, OPENING, SAMPLING
from opt_trt.cli import parse
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.runtime_flags import EMBEDDED, RuntimeOptions, check_embedded
from opt_trt.config.sampling import GREEDY, Sampling
from opt_trt.config.session_flags import RUNTIME_FLAGS
from opt_trt.config.summarize_flags import SummarizeConfig
from opt_trt.errors import UserError
from opt_trt.run.run import run
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request, RequestFailed
from opt_trt.runtime.stopping import StopWords
from tests.trtllm._sessions import Double

CPP, PYTHON = "ModelRunnerCpp", "ModelRunner"
PY_SESSION = ("--use_py_session",)
REFUSED = "refused"

# A flag of run.py: the keyword of `from_dir` and its value, for the C++ and for the Python session.
OPENED: dict[str, tuple[Any, Any]] = {
    "--enable_context_fmha_fp32_acc": ({"enable_context_fmha_fp32_acc": True}, {"enable_context_fmha_fp32_acc": True}),
    "--multi_block_mode False": ({"multi_block_mode": False}, {"multi_block_mode": False}),
    "--gpu_weights_percent 0.5": ({"gpu_weights_percent": 0.5}, {"gpu_weights_percent": 0.5}),
    "--debug_mode": (None, {"debug_mode": True}),  # which takes the Python session
    "--fail_fast_on_attention_window_too_large": (
        {"fail_fast_on_attention_window_too_large": True},
        {"fail_fast_on_attention_window_too_large": True},
    ),
    "--cuda_graph_mode": ({"cuda_graph_mode": True}, REFUSED),
    "--enable_chunked_context": ({"enable_chunked_context": True}, REFUSED),
    "--max_attention_window_size 16 8": ({"max_attention_window_size": [16, 8]}, {}),
    "--sink_token_length 2": ({"sink_token_length": 2}, {}),
    "--max_tokens_in_paged_kv_cache 512": ({"max_tokens_in_paged_kv_cache": 512}, REFUSED),
    "--kv_cache_free_gpu_memory_fraction 0.5": ({"kv_cache_free_gpu_memory_fraction": 0.5}, REFUSED),
    "--kv_cache_enable_block_reuse": ({"kv_cache_enable_block_reuse": True}, REFUSED),
    "--output_generation_logits": ({"gather_generation_logits": True}, {}),
    "--scheduler_policy max_utilization": (REFUSED, REFUSED),
    "--context_chunk_size 8": (REFUSED, REFUSED),
}
NEUTRAL = {  # of `from_dir`, where nothing is asked for
    CPP: {
        "rank": 0, "enable_context_fmha_fp32_acc": False, "multi_block_mode": True, "gpu_weights_percent": 1.0,
        "debug_mode": False, "fail_fast_on_attention_window_too_large": False, "cuda_graph_mode": False,
        "enable_chunked_context": False, "max_attention_window_size": None, "sink_token_length": None,
        "max_tokens_in_paged_kv_cache": None, "kv_cache_free_gpu_memory_fraction": 0.9,
        "kv_cache_enable_block_reuse": False, "gather_generation_logits": False,
    },
    PYTHON: {
        "rank": 0, "enable_context_fmha_fp32_acc": False, "multi_block_mode": True, "gpu_weights_percent": 1.0,
        "debug_mode": False, "fail_fast_on_attention_window_too_large": False,
    },
}  # fmt: skip

# An option of a request: the keyword of `generate` and its value, for the C++ and for the Python session.
CHOSEN: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "temperature": ({"temperature": 0.5, "top_k": 9}, {"temperature": 0.5}, {"temperature": 0.5}),
    "top_k": ({"top_k": 9}, {"top_k": 9, "top_p": 1.0}, {"top_k": 9, "top_p": 1.0}),
    "top_p": ({"top_k": 0, "top_p": 0.9}, {"top_k": 0, "top_p": 0.9}, {"top_k": 0, "top_p": 0.9}),
    "min_p": ({"top_k": 9, "min_p": 0.1}, {"min_p": 0.1}, REFUSED),
    "repetition_penalty": ({"repetition_penalty": 2.0}, {"repetition_penalty": 2.0}, {"repetition_penalty": 2.0}),
    "presence_penalty": ({"presence_penalty": 1.0}, {"presence_penalty": 1.0}, {"presence_penalty": 1.0}),
    "frequency_penalty": ({"frequency_penalty": 1.0}, {"frequency_penalty": 1.0}, {"frequency_penalty": 1.0}),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
    "min_length": ({"min_length": 2}, {"min_tokens": 2}, {"min_length": 2}),
    "bad_words": ({"bad_words": ((4,), (5, 6))}, {"bad_words_list": [[[4], [5, 6]]]},
                  {"bad_words_list": [[[4], [5, 6]]]}),
    "logit_bias": ({"logit_bias": ((4, 1.0),)}, REFUSED, REFUSED),
    "random_seed": ({"random_seed": 7}, {"random_seed": 7}, {"random_seed": 7}),
    "num_beams": ({"num_beams": 3}, {"num_beams": 3, "output_log_probs": True, "output_cum_log_probs": True},
                  {"num_beams": 3}),
    "length_penalty": ({"num_beams": 2, "length_penalty": 0.5}, {"length_penalty": 0.5}, {"length_penalty": 0.5}),
    "early_stopping": ({"num_beams": 2, "early_stopping": 0}, {"early_stopping": 0}, {"early_stopping": 0}),
    "beam_search_diversity_rate": ({"num_beams": 2, "beam_search_diversity_rate": 0.5},
                                   {"beam_search_diversity_rate": 0.5}, {"beam_search_diversity_rate": 0.5}),
    "penalty_alpha": ({"penalty_alpha": 0.6, "top_k": 4}, REFUSED, REFUSED),
    "allowed_ids": ({"allowed_ids": (5, 9)}, REFUSED, REFUSED),
    "prompt_log_probs": ({"prompt_log_probs": 1}, REFUSED, REFUSED),
    "log_probs": ({"log_probs": 0}, {"output_log_probs": True, "output_cum_log_probs": True}, REFUSED),
    "sequence": ({"top_k": 9, "sequence": 1}, {"top_k": 9}, REFUSED),  # with the first: see below
}  # fmt: skip
GREEDILY = {
    "temperature": 1.0, "top_k": 1, "top_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "random_seed": 0, "num_beams": 1, "length_penalty": 1.0, "early_stopping": 1,
    "beam_search_diversity_rate": 0.0,
}  # fmt: skip


def run_ids(double: Double, tmp_path: Path, *flags: str, **changes: Any) -> list[list[int]]:
    """run.py, token ids in and out."""
    (tmp_path / "in.csv").write_text("1,3\n2,2,1\n")
    engine = double.engine(**changes)
    logits = ["--output_logits_npy", str(tmp_path / "logits")] * ("--output_generation_logits" in flags)
    given = ["--engine_dir", str(engine), "--max_output_len", "4", "--input_file", str(tmp_path / "in.csv")]
    run(parse(RunConfig, [*given, "--output_csv", str(tmp_path / "out.csv"), *flags, *logits]))
    with (tmp_path / "out.csv").open() as file:
        return [list(map(int, row)) for row in csv.reader(file)]


def test_every_option_is_in_the_table() -> None:
    assert SAMPLING.keys() == CHOSEN.keys() == {f.name for f in fields(Sampling)}
    opened = {flag.split()[0].removeprefix("--") for flag in OPENED}
    renamed = {"output_generation_logits": "gather_generation_logits"}
    assert OPENING.keys() == {renamed.get(name, name) for name in opened}
    assert {f.name for f in fields(RuntimeOptions)} - {"use_py_session"} <= OPENING.keys()


@pytest.mark.parametrize("runner", [CPP, PYTHON])
@pytest.mark.parametrize("flags", OPENED)
def test_runtime_flags_reach_from_dir(double: Double, tmp_path: Path, flags: str, runner: str) -> None:
    expected = OPENED[flags][runner == PYTHON]
    argv = (*flags.split(), *(PY_SESSION if runner == PYTHON else ()))
    if expected == REFUSED:
        with pytest.raises(
            UserError, match=rf"{argv[0]} cannot be passed to the {runner} of TensorRT-LLM 1\.2\.1; drop"
        ):
            run_ids(double, tmp_path, *argv)
        return
    assert run_ids(double, tmp_path, *argv) == [[1, 3, 4, 8, 16, 32, 2], [2, 2, 1, 5, 10, 20, 40]]
    [(opened, keywords)] = double.seen.opened
    assert opened == (PYTHON if expected is None else runner)
    expected = NEUTRAL[opened] | (OPENED[flags][1] if expected is None else expected)
    assert {name: value for name, value in keywords.items() if name != "engine_dir"} == expected


@pytest.mark.parametrize(("flags", "keywords"), [
    ("--max_attention_window_size 16 8", {"max_attention_window_size": 16}),
    ("--sink_token_length 2", {"sink_token_length": 2}),
])  # fmt: skip
def test_the_python_session_is_told_its_window_at_each_call(
    double: Double, tmp_path: Path, flags: str, keywords: dict[str, int]
) -> None:
    run_ids(double, tmp_path, *flags.split(), *PY_SESSION)
    [call] = double.seen.calls
    assert {name: call.get(name) for name in keywords} == keywords
    assert set(keywords) <= set(AT_EACH_CALL)


@pytest.mark.parametrize("script", [(RunConfig, "--max_output_len 4"), (SummarizeConfig, "--test_trt_llm")])
@pytest.mark.parametrize("flags", [flags for flags in OPENED if flags.split()[0].removeprefix("--") in RUNTIME_FLAGS])
def test_both_scripts_tell_the_runtime_flags(script: tuple[Any, str], flags: str) -> None:
    options = parse(script[0], [*script[1].split(), *flags.split()]).runtime_options()
    assert list(options.given()) == [flags.split()[0].removeprefix("--")]


@pytest.mark.parametrize(("text", "value"), [("True", True), ("1", True), ("false", False), ("0", False)])
def test_multi_block_mode_is_said_in_words(text: str, value: bool) -> None:
    config = parse(RunConfig, ["--max_output_len", "4", "--multi_block_mode", text])
    assert config.runtime_options().multi_block_mode is value


@pytest.mark.parametrize("percent", ["-0.1", "1.5"])
def test_a_share_of_the_weights_is_from_0_to_1(percent: str) -> None:
    with pytest.raises(UserError, match=f"--gpu_weights_percent must be from 0 to 1, found {percent}"):
        parse(RunConfig, ["--max_output_len", "4", "--gpu_weights_percent", percent])


@pytest.mark.parametrize("runner", [CPP, PYTHON])
@pytest.mark.parametrize("option", CHOSEN)
def test_options_of_a_request_reach_generate(double: Double, option: str, runner: str) -> None:
    given, cpp, python = CHOSEN[option]
    session = double.open(RuntimeOptions(use_py_session=runner == PYTHON))
    request = Request((1, 3), 4, 2, sampling=Sampling(**given))
    expected = python if runner == PYTHON else cpp
    if expected == REFUSED:
        with pytest.raises(RequestFailed, match=r"prompt 0 asks for .*: .*; drop it"):
            generate(session, [request])
        return
    generate(session, [request])
    [call] = double.seen.calls
    own = {"min_p": 0.0, "output_log_probs": "num_beams" in given} if runner == CPP else {}
    assert {name: call.get(name) for name in expected} == expected
    others = {name: value for name, value in (GREEDILY | own).items() if name not in expected and name not in given}
    assert {name: call[name] for name in others if given.get("top_k", 1) == 1} == {
        name: value for name, value in others.items() if given.get("top_k", 1) == 1
    }


@pytest.mark.parametrize("options", [RuntimeOptions(), RuntimeOptions(use_py_session=True)])
def test_what_every_call_says(double: Double, options: RuntimeOptions) -> None:
    """The two runners have different defaults for most of it."""
    generate(double.open(options), [Request((1, 3), 4, 2)])
    [call] = double.seen.calls
    expected = {
        "max_new_tokens": 4, "end_id": 2, "pad_id": 1, "return_dict": True, "output_sequence_lengths": True,
        "output_generation_logits": False, "streaming": False, "stop_words_list": None, "bad_words_list": None,
    }  # fmt: skip
    assert {name: call[name] for name in expected} == expected
    assert [ids.tolist() for ids in call["batch_input_ids"]] == [[1, 3]]


def test_draws_of_a_prompt_are_one_row_of_a_call(double: Double) -> None:
    drawn = Sampling(top_k=9)
    requests = [Request(p, 3, sampling=replace(drawn, sequence=n)) for p in ((1, 3), (2,)) for n in range(3)]
    results = generate(double.open(), requests)
    [call] = double.seen.calls
    assert call["num_return_sequences"] == 3 and len(call["batch_input_ids"]) == 2
    assert [r.output_ids for r in results[:3]] == [(4, 8, 16), (5, 10, 20), (6, 12, 24)]  # the double adds the number


def test_a_lonely_request_asks_for_no_several_outputs(double: Double) -> None:
    generate(double.open(), [Request((1, 3), 4)])
    assert "num_return_sequences" not in double.seen.calls[0]


def test_an_older_release_is_not_given_what_it_would_pass_over(double: Double) -> None:
    import sys

    sys.modules["tensorrt_llm"].__version__ = "0.20.0"  # type: ignore[attr-defined]
    session = double.open()
    with pytest.raises(RequestFailed, match=r"asks for --min_p: only the C\+\+ session of 1\.0 and later knows it"):
        generate(session, [Request((1,), 2, sampling=Sampling(top_k=9, min_p=0.1))])
    generate(session, [Request((1,), 2)])
    assert not {"min_p", "min_tokens", "num_return_sequences"} & double.seen.calls[0].keys()


def test_stop_words_are_told_as_ids_where_they_may_end_early(double: Double) -> None:
    words = StopWords(ids=((16,),), strings=("!",), open_text=lambda: None, spellings=((8, 7),))  # type: ignore[arg-type]
    request = Request((1, 3), 6, stop_words=replace(words, strings=(), open_text=None))
    [result] = generate(double.open(), [request])
    assert double.seen.calls[0]["stop_words_list"] == [[[16], [8, 7]]]
    assert (result.output_ids, result.finish_reason) == ((4, 8, 16), "stop_words")


def test_further_end_ids_are_told_as_stop_words(double: Double) -> None:
    requests = [Request((1, 3), 6).ending_at((49, 16)), Request((1, 3), 6).ending_at((8, 16))]
    results = generate(double.open(), requests)
    calls = double.seen.calls
    assert [(call["end_id"], call["stop_words_list"]) for call in calls] == [(49, [[[16]]]), (8, [[[16]]])]
    assert [(result.output_ids, result.finish_reason) for result in results] == [
        ((4, 8, 16), "end_id"), ((4, 8), "end_id"),
    ]  # fmt: skip


def test_stop_words_that_may_come_too_early_are_kept_here(double: Double) -> None:
    request = Request((1, 3), 6, sampling=replace(GREEDY, min_length=4), stop_words=StopWords(ids=((16,), (14,))))
    [result] = generate(double.open(), [request])
    assert double.seen.calls[0]["stop_words_list"] is None
    assert (result.output_ids, result.finish_reason) == ((4, 8, 16, 32, 14), "stop_words")


@pytest.mark.parametrize("device", EMBEDDED)
@pytest.mark.parametrize("name", [f.name for f in fields(RuntimeOptions)])
def test_an_embedded_engine_refuses_each_runtime_option_or_says_that_it_happens_anyway(
    name: str, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {"multi_block_mode": False, "gpu_weights_percent": 0.5, "max_attention_window_size": (8,)}
    options = RuntimeOptions(**{name: values.get(name, True)})
    answer = EMBEDDED[device][name]
    if answer.reason:
        said = str(UserError(f"--{name} is not supported by this engine{answer.why(f'--{name}')}"))
        with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
            check_embedded(options, device)
        return
    check_embedded(options, device)
    told = capsys.readouterr().err
    assert told == f"{answer.note}\n" * bool(answer.note)


def test_the_table_of_embedded_answers_is_whole() -> None:
    for device, answers in EMBEDDED.items():
        assert answers.keys() == {f.name for f in fields(RuntimeOptions)}
        check_embedded(RuntimeOptions(), device)
