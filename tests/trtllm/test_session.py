"""A TensorRT engine serves requests as any engine does: over the double of TensorRT-LLM's runners."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from opt_trt import LLM, SamplingParams
from opt_trt.backends import open_engine, open_rank
from opt_trt.backends.identity import identify
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.evaluate.engine_summarizer import EngineSummarizer
from opt_trt.runtime.follow import OPEN, Opening, follow
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.ranks import Alone, index_bytes
from opt_trt.runtime.request import Request, RequestFailed
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.stopping import StopWords
from tests.trtllm._facts import load
from tests.trtllm._runner import RecordedCalls
from tests.trtllm._sessions import Double, installed
from tests.unit._decoders import expected_output

PYTHON = RuntimeOptions(use_py_session=True)
BOTH = pytest.mark.parametrize("options", [RuntimeOptions(), PYTHON], ids=["C++", "Python"])
REQUESTS = [Request((1, 3), 4), Request((2, 2, 1), 6, 40), Request((1, 1), 6, 8), Request((7,), 1), Request((4,), 5, 4)]
EXPECTED = [expected_output(r.prompt_ids, r.max_new_tokens, r.end_id, 50) for r in REQUESTS]


@BOTH
def test_outputs_are_new_tokens_only_the_end_id_included(double: Double, options: RuntimeOptions) -> None:
    results = generate(double.open(options), REQUESTS)
    assert [result.output_ids for result in results] == EXPECTED
    assert [result.finish_reason for result in results] == ["length", "end_id", "end_id", "length", "end_id"]
    assert [result.prompt_ids for result in results] == [request.prompt_ids for request in REQUESTS]


@BOTH
def test_a_stream_has_the_tokens_of_a_whole_answer(double: Double, options: RuntimeOptions) -> None:
    session = double.open(options)
    events = list(stream(session, REQUESTS))
    told = [tuple(e.token_id for e in events if e.index == i) for i in range(len(REQUESTS))]
    assert told == EXPECTED
    assert [e.index for e in events if e.finish_reason] and all(call["streaming"] for call in double.seen.calls)


@BOTH
def test_tokens_come_while_the_runner_goes_on(double: Double, options: RuntimeOptions) -> None:
    tokens = stream(double.open(options), [Request((1, 3), 4), Request((2,), 4)])
    assert [next(tokens).token_id for _ in range(2)] in ([4, 2], [4, 8])


def test_more_requests_than_the_engine_takes_are_several_calls(double: Double) -> None:
    requests = [Request((i,), 2) for i in range(1, 8)]
    results = generate(double.open(), requests)
    assert [len(call["batch_input_ids"]) for call in double.seen.calls] == [4, 3]
    assert [result.prompt_ids for result in results] == [request.prompt_ids for request in requests]


def test_requests_that_are_told_alike_share_a_call(double: Double) -> None:
    generate(double.open(), [Request((1,), 2), Request((2,), 3), Request((3,), 2)])
    assert [len(call["batch_input_ids"]) for call in double.seen.calls] == [2, 1]


def test_requests_with_words_have_calls_of_their_own(double: Double) -> None:
    banning = Sampling(bad_words=((2,),))
    results = generate(double.open(), [Request((1,), 2), Request((2,), 2, sampling=banning), Request((3,), 2)])
    assert [call["bad_words_list"] for call in double.seen.calls] == [None, [[[2]]]]
    assert results[1].output_ids == (3, 5)


def test_a_cancelled_stream_leaves_the_session_usable(double: Double) -> None:
    session = double.open()
    tokens = stream(session, [Request((1, 3), 4)])
    next(tokens)
    tokens.close()
    assert generate(session, [Request((2,), 2)])[0].output_ids == (2, 4)


def test_context_logits_are_asked_for_one_prompt_at_a_time(double: Double) -> None:
    """Of several prompts of different lengths they come shifted (by reading)."""
    session = double.open(gather_context_logits=True)
    results = generate(session, [Request(r.prompt_ids, 1, return_context_logits=True) for r in REQUESTS])
    assert [len(call["batch_input_ids"]) for call in double.seen.calls] == [1] * len(REQUESTS)
    for request, result in zip(REQUESTS, results, strict=True):
        assert result.context_logits is not None
        assert result.context_logits.shape == (len(request.prompt_ids), 50)  # 56 with padding
        assert result.context_logits.dtype == torch.float32
        assert result.context_logits.argmax(1)[-1] == result.output_ids[0]


@BOTH
def test_generation_logits_have_a_row_for_each_new_token(double: Double, options: RuntimeOptions) -> None:
    session = double.open(replace(options, gather_generation_logits=True))
    results = generate(session, [Request(p, 3, return_generation_logits=True) for p in ((1, 3), (2,))])
    for result in results:
        assert result.generation_logits is not None and result.generation_logits.shape == (3, 50)
        assert tuple(result.generation_logits.argmax(1).tolist()) == result.output_ids
    assert double.seen.calls[0]["output_generation_logits"]


def test_the_log_probability_of_the_end_id_is_what_the_whole_outputs_leaves(double: Double) -> None:
    asking = Sampling(log_probs=0)
    ended, cut = generate(
        double.open(), [Request((1, 1), 6, 8, sampling=asking), Request((1, 3), 6, 8, sampling=asking)]
    )
    assert [t.log_prob for t in ended.log_probs] == [-0.5, -0.5, -0.25]
    assert ended.cum_log_prob == -1.25 and cut.output_ids[-1] == 8


@BOTH
def test_beams_are_outputs_of_one_prompt_best_first(double: Double, options: RuntimeOptions) -> None:
    searching = Sampling(num_beams=3)
    [result] = generate(double.open(options), [Request((1, 3), 2, sampling=searching)])
    assert [beam.output_ids for beam in result.beams] == [(4, 8), (5, 10), (6, 12)]
    assert result.output_ids == (4, 8) and result.finish_reason == "length"
    if options != PYTHON:
        assert [beam.score for beam in result.beams] == [-0.5] * 3


@BOTH
def test_beams_are_not_streamed(double: Double, options: RuntimeOptions) -> None:
    with pytest.raises(UserError, match="beams change until the last token"):
        stream(double.open(options), [Request((1, 3), 2, sampling=Sampling(num_beams=2))])
    assert double.seen.calls == []


def test_an_engine_that_gathers_context_logits_is_not_streamed(double: Double) -> None:
    """Parts of a stream lack what it asserts to be there (by reading): the tokens come together, and are the same."""
    session = double.open(gather_context_logits=True)
    assert [e.token_id for e in stream(session, [Request((1, 3), 4)])] == [4, 8, 16, 32]
    assert not double.seen.calls[0]["streaming"]


class First(Alone):
    """The rank that leads others, which do as it says elsewhere."""

    local_size = 2

    def __init__(self) -> None:
        self.log: list[str] = []

    def step(self, message: Callable[[], bytes]) -> AbstractContextManager[None]:
        self.log.append("step")
        return super().step(message)

    def close(self) -> None:
        self.log.append("close")


@BOTH
def test_several_ranks_of_the_python_session_are_not_streamed(double: Double, options: RuntimeOptions) -> None:
    """They would wait for one another between two tokens: the tokens come together, and are the same."""
    engine = double.engine(world_size=2)
    opening = Opening(engine, KvCacheLimit(), Scheduling(), options, identify(engine).fingerprint)
    session = open_rank(opening, First())
    assert [e.token_id for e in stream(session, [Request((1, 3), 4)])] == [4, 8, 16, 32]
    assert double.seen.calls[0]["streaming"] == (options != PYTHON)


@BOTH
def test_a_closed_session_refuses_requests_before_other_ranks_hear_of_them(
    double: Double, options: RuntimeOptions
) -> None:
    engine, ranks = double.engine(world_size=2), First()
    session = open_rank(Opening(engine, KvCacheLimit(), Scheduling(), options, identify(engine).fingerprint), ranks)
    session.close()
    session.close()
    with pytest.raises(UserError, match="the engine is closed: open it again"):
        generate(session, [Request((1, 3), 4)])
    with pytest.raises(UserError, match="the engine is closed: open it again"):
        list(stream(session, [Request((1, 3), 4)]))
    assert ranks.log == ["close"] and double.seen.calls == []
    assert double.seen.num_shut_down == (options != PYTHON)


@pytest.mark.parametrize("plugins", [
    {"gpt_attention_plugin": None}, {"remove_input_padding": False},
])  # fmt: skip
def test_engines_without_in_flight_batching_run_in_the_python_session(
    double: Double, plugins: dict[str, object]
) -> None:
    double.open(plugins=plugins)
    assert double.seen.opened[0][0] == "ModelRunner"


def test_a_contiguous_cache_runs_in_the_python_session(double: Double) -> None:
    double.open(kv_cache_type="CONTINUOUS")
    assert double.seen.opened[0][0] == "ModelRunner"


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (Request((), 2), "is empty"),
        (Request((50,), 2), "has token id 50, the vocabulary is 0 to 49"),
        (Request((1,) * 33, 2), "has 33 tokens, the engine takes 32"),
        (Request((1,) * 30, 20), "needs 30 tokens . 20 new ones = 50, the engine takes 48"),
        (Request((1,), 2, return_context_logits=True), "asks for context logits; build the engine with"),
        (Request((1,), 2, return_generation_logits=True), "asks for generation logits; build the engine with"),
        (Request((1,), 2, sampling=Sampling(num_beams=4)), "asks for 4 beams, the engine takes 3"),
        (
            Request((1,), 2, sampling=Sampling(num_beams=2), stop_words=StopWords(((1,),))),
            "asks for beams and for stop words",
        ),
        (Request((1,), 2, sampling=Sampling(log_probs=2)), "asks for the most likely tokens beside"),
    ],
)
def test_what_the_engine_cannot_serve_is_named(double: Double, request_: Request, problem: str) -> None:
    with pytest.raises(RequestFailed, match=f"prompt 1 {problem}"):
        generate(double.open(), [Request((1,), 1), request_])
    assert double.seen.calls == []


def test_an_error_of_the_runner_is_one_line_and_the_session_goes_on(
    double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = double.open()
    monkeypatch.setattr("tests.trtllm._runner.Call.whole", lambda self: iter([][1:] or _fails()))
    with pytest.raises(UserError, match="TensorRT-LLM failed: CUDA out of memory; --log_level verbose shows where"):
        generate(session, [Request((1,), 2)])
    monkeypatch.undo()
    assert generate(session, [Request((2,), 2)])[0].output_ids == (2, 4)


def test_a_stream_that_broke_off_ends_its_session(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the executor still has of it would be taken for answers to the next call, which then never ends."""
    session = double.open()
    monkeypatch.setattr("tests.trtllm._runner.Call.parts", lambda self: _fails())
    with pytest.raises(UserError, match="TensorRT-LLM failed: CUDA out of memory"):
        list(stream(session, [Request((1,), 2)]))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"a call broke off, .*; start again, or open the engine again"):
        generate(session, [Request((2,), 2)])


def _fails():  # type: ignore[no-untyped-def]
    raise RuntimeError("CUDA out of memory\nwith a long story")
    yield


def test_llm_answers_from_an_engine_directory(double: Double) -> None:
    with LLM(double.engine()) as llm:
        answers = llm.generate([[1, 3], [2, 2, 1]], SamplingParams(max_tokens=3, temperature=0))
        assert [answer.outputs[0].token_ids for answer in answers] == [[4, 8, 16], [5, 10, 20]]
        beams = llm.generate([1, 3], SamplingParams(max_tokens=2, use_beam_search=True, best_of=2, n=2))
        assert [output.token_ids for output in beams[0].outputs] == [[4, 8], [5, 10]]
    assert not double.seen.calls[0]["streaming"]


def test_llm_streams_from_an_engine_directory(double: Double) -> None:
    async def lengths(llm: LLM) -> list[int]:
        params = SamplingParams(max_tokens=4, temperature=0)
        return [len(answer.outputs[0].token_ids) async for answer in llm.generate_async([1, 3], params)]

    with LLM(double.engine()) as llm:
        seen = asyncio.run(lengths(llm))
    assert seen[-1] == 4 and seen == sorted(seen) and double.seen.calls[0]["streaming"]


def test_summaries_and_perplexity_come_from_an_engine_directory(double: Double) -> None:
    summarizer = EngineSummarizer(double.open(gather_context_logits=True), 3, ())
    assert summarizer.generate([(1, 3), (2,)]) == [(4, 8, 16), (2, 4, 8)]
    sharp = summarizer.mean_nll((1, 1), (2, 4, 8))  # one-hot logits of the right tokens, but for the first two
    assert sharp == pytest.approx(torch.nn.functional.cross_entropy(torch.eye(50)[[1]], torch.tensor([1])).item(), 0.2)


def test_a_directory_of_three_keys_is_a_tensorrt_engine(double: Double) -> None:
    found = identify(double.engine(world_size=2))
    assert (found.backend, found.world_size) == ("tensorrt_llm", 2)
    assert found.fingerprint != identify(double.engine(world_size=1)).fingerprint


def test_another_number_of_processes_than_ranks_is_refused(double: Double) -> None:
    with pytest.raises(UserError, match="it was built for 2 ranks, 1 process was started; run it with mpirun -n 2"):
        double.open(world_size=2)


def test_an_engine_of_another_model_is_named(double: Double) -> None:
    path = double.engine() / "config.json"
    path.write_text(path.read_text().replace("OPTForCausalLM", "GPTForCausalLM"))
    from opt_trt.backends.trtllm.engine_file import read_engine

    with pytest.raises(UserError, match=r"is of 'GPTForCausalLM', expected 'OPTForCausalLM'; build an OPT"):
        read_engine(path.parent)


def test_engines_older_than_the_three_keys_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "config.json").write_text('{"builder_config": {}, "plugin_config": {}}')
    with pytest.raises(UserError, match=r"is of TensorRT-LLM before 0\.8, whose engines no later release runs"):
        identify(tmp_path)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ('{"version": "1", "pretrained_config": [], "build_config": {}}', "pretrained_config must be an object"),
        ('{"version": "1", "pretrained_config": {}, "build_config": 3}', "build_config must be an object, found 3"),
        (
            '{"version": "1", "pretrained_config": {"mapping": [1]}, "build_config": {}}',
            "mapping must say a world_size",
        ),
        (
            '{"version": "1", "pretrained_config": {"mapping": {"world_size": "x"}}, "build_config": {}}',
            "mapping .*'x'",
        ),
    ],
)
def test_a_damaged_configuration_is_named(tmp_path, config: str, problem: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=rf"config\.json: {problem}.*; build the engine again"):
        identify(tmp_path)


@pytest.mark.parametrize("limit", [{"max_batch_size": "8"}, {"max_seq_len": "48"}, {"gather_context_logits": 1}])
def test_a_damaged_limit_is_named(double: Double, limit: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"build_config has no usable {next(iter(limit))}; build the engine again"):
        double.open(**limit)


@pytest.mark.parametrize(("built_by", "advice"), [
    ("1.0.0", r"it was built by TensorRT-LLM 1\.0\.0: build it again, or install that release"),
    ("1.2.1", "--log_level verbose shows where"),
])  # fmt: skip
def test_an_engine_that_does_not_open_says_who_built_it(
    double: Double, monkeypatch: pytest.MonkeyPatch, built_by: str, advice: str
) -> None:
    path = double.engine() / "config.json"
    path.write_text(path.read_text().replace('"version": "1.2.1"', f'"version": "{built_by}"'))

    def fails(self: object, *given: object) -> None:
        raise RuntimeError("Version tag does not match\nand more")

    monkeypatch.setattr("tests.trtllm._runner.Runner.__init__", fails)
    with pytest.raises(UserError, match=rf"TensorRT-LLM 1\.2\.1 cannot open .*: Version tag does not match; {advice}$"):
        open_engine(path.parent, KvCacheLimit())


def test_a_package_that_does_not_load_is_named(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise RuntimeError("cannot load MPI library")

    monkeypatch.setattr("opt_trt.backends.trtllm.runner.missing", lambda: None)
    monkeypatch.setattr("opt_trt.backends.trtllm.runner.import_module", fails)
    with pytest.raises(UserError, match="which TensorRT-LLM runs: cannot load MPI library; pip install"):
        double.open()


def test_what_the_leader_closes_is_shut_down_on_the_others_at_once(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Its executor holds the GPU's memory, which the next engine needs."""
    seen = RecordedCalls()
    engine = Double(tmp_path, seen).engine(world_size=2)
    opening = Opening(engine, KvCacheLimit(), Scheduling(), fingerprint=identify(engine).fingerprint)
    messages = [index_bytes(OPEN) + pickle.dumps(opening), index_bytes(0)]
    shut_down: list[int] = []

    def receive() -> bytes:
        shut_down.append(seen.num_shut_down)
        return messages.pop(0) if messages else b""

    world = SimpleNamespace(is_leader=False, rank=1, local_size=2)
    follower = SimpleNamespace(
        world=world, num_sessions=0, step_timeout=None, section=nullcontext, receive=receive
    )  # fmt: skip
    with installed(load("1.2").facts, seen, rank=1):
        follow(follower, open_rank)  # type: ignore[arg-type]
    assert shut_down == [0, 0, 1]
