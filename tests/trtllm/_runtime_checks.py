"""Check what the sessions rely on against the facts of a release, as `_checks` does for the builder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from opt_trt.backends.trtllm.calls import NO_END
from opt_trt.backends.trtllm.keywords import AT_EACH_CALL, CPP, OLDEST_RUNNER, OPENING, PYTHON, SAMPLING
from opt_trt.backends.trtllm.release import NEWEST, Release
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.sampling import Sampling
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request
from opt_trt.runtime.sequence import TokenSequence
from tests.trtllm._facts import Facts
from tests.trtllm._runner import RecordedCalls
from tests.trtllm._sessions import Double, installed

# Parameters that sessions do not pass, and the defaults that make this right.
LEFT = {
    "cpp_from_dir": {
        "lora_dir": None, "max_batch_size": None, "max_input_len": None, "max_output_len": None, "max_beam_width": None,
        "cross_kv_cache_fraction": None, "medusa_choices": None, "eagle_choices": None,
        "eagle_posterior_threshold": None, "eagle_use_dynamic_tree": False, "eagle_dynamic_tree_max_top_k": None,
        "lookahead_config": None, "lora_ckpt_source": "hf", "use_gpu_direct_storage": False, "is_enc_dec": False,
        "logits_processor_map": None, "device_ids": None, "is_orchestrator_mode": False, "use_runtime_defaults": True,
        "use_variable_beam_width_search": False, "mm_embedding_offloading": False,
    },
    "py_from_dir": {
        "max_output_len": None, "lora_dir": None, "lora_ckpt_source": "hf", "medusa_choices": None, "stream": None,
    },
    "cpp_generate": {
        "position_ids": None, "encoder_input_ids": None, "encoder_input_features": None, "encoder_output_lengths": None,
        "cross_attention_masks": None, "mrope_params": None, "sampling_config": None, "lora_uids": None,
        "lookahead_config": None, "stopping_criteria": None, "logits_processor_names": None, "prompt_table": None,
        "prompt_tasks": None, "input_token_extra_ids": None, "return_all_generated_tokens": False,
        "language_adapter_uids": None, "mm_embedding_offloading": False,
    },
    "py_generate": {
        "position_ids": None, "sampling_config": None, "prompt_table": None, "prompt_tasks": None, "lora_uids": None,
        "stopping_criteria": None, "logits_processor": None, "medusa_choices": None, "encoder_max_input_length": None,
        "encoder_input_features": None, "encoder_output_lengths": None, "cross_attention_masks": None,
    },
    "py_sampling": {
        "num_return_sequences": None, "top_p_decay": None, "top_p_min": None, "top_p_reset_ids": None,
        "use_beam_hyps": True, "output_cum_log_probs": False, "output_log_probs": False,
    },
}  # fmt: skip
ALWAYS = {  # passed in every call, with the runners' defaults, which differ from each other
    "cpp_generate": {
        "streaming": False, "max_new_tokens": 1, "end_id": None, "pad_id": None, "bad_words_list": None,
        "stop_words_list": None, "return_dict": False, "output_sequence_lengths": False,
        "output_generation_logits": False, "output_log_probs": False, "output_cum_log_probs": False,
    },
    "py_generate": {"streaming": False, "output_generation_logits": False},
    "py_sampling": {
        "max_new_tokens": 20, "output_sequence_lengths": False, "return_dict": False, "stop_words_list": None,
        "bad_words_list": None, "random_seed": None, "min_length": 1, "no_repeat_ngram_size": None,
    },
}  # fmt: skip
UNSET = {  # where the runner has no default of its own
    CPP: {"max_attention_window_size", "sink_token_length", "kv_cache_free_gpu_memory_fraction",
          "max_tokens_in_paged_kv_cache", "enable_context_fmha_fp32_acc", "cuda_graph_mode"},
    PYTHON: {"enable_context_fmha_fp32_acc", "multi_block_mode"},
}  # fmt: skip
UNUSED_SAMPLING = {"top_p_min", "top_p_reset_ids", "top_p_decay", "beam_width_array"}
RENAMED = {"num_beams": "beam_width", "random_seed": "seed"}
OPENED = {"engine_dir": {"required": True}, "rank": {"default": 0}}


def runs(facts: Facts) -> bool:
    """Return whether this project's sessions run engines of the release."""
    return Release.parse(facts["version"]) >= OLDEST_RUNNER


def is_newest(facts: Facts) -> bool:
    """Return whether this is the newest release; older ones may lack parameters, passed or not."""
    return Release.parse(facts["version"]) == NEWEST


def check_opening(facts: Facts) -> None:
    """Check that `from_dir` of both runners takes what sessions pass, and nothing else that matters for OPT."""
    if not runs(facts):
        return
    for kind, prefix in ((CPP, "cpp"), (PYTHON, "py")):
        section = f"{prefix}_from_dir"
        told = {(key.python if kind == PYTHON else key.cpp): name for name, key in OPENING.items()}
        known = {name: fact for name, fact in facts[section].items() if name not in LEFT[section]}
        assert {name: known.pop(name) for name in OPENED} == OPENED
        assert known.keys() <= told.keys()
        assert not is_newest(facts) or known.keys() == {name for name in told if name is not None}
        for name, fact in known.items():
            ours = None if name in UNSET[kind] else getattr(RuntimeOptions(), name, False)
            assert fact == {"default": ours}, name
        _assert_left(facts, section)


def check_calls(facts: Facts) -> None:
    """Check that `generate` of both runners takes what every call passes, and has defaults that make this necessary."""
    if not runs(facts):
        return
    for section in ("cpp_generate", "py_generate", "py_sampling"):
        known = {name: fact.get("default") for name, fact in facts[section].items()}
        assert {name: known[name] for name in ALWAYS[section]} == ALWAYS[section]
        _assert_left(facts, section)
    required = {
        section: [n for n, f in facts[section].items() if f.get("required")]
        for section in facts
        if section[:3] in ("cpp", "py_")
    }
    assert {n: r for n, r in required.items() if r} == {
        "cpp_from_dir": ["engine_dir"], "cpp_generate": ["batch_input_ids"], "py_from_dir": ["engine_dir"],
        "py_generate": ["batch_input_ids"], "py_sampling": ["end_id", "pad_id"],
    }  # fmt: skip


def check_sampling(facts: Facts) -> None:
    """Check that options of a request have the names and defaults that they have in both runners."""
    if not runs(facts):
        return
    here = Release.parse(facts["version"])
    told = {name: key.of(CPP, here) for name, key in SAMPLING.items()}
    accepted = facts["cpp_sampling"]
    assert (
        accepted.keys()
        == {k for k in told.values() if k is not None and k not in facts["cpp_generate"]} | UNUSED_SAMPLING
    )
    assert {name: fact["sent_as"] for name, fact in accepted.items()} == {n: RENAMED.get(n, n) for n in accepted}
    python = {name: key.python for name, key in SAMPLING.items() if key.python is not None}
    fields = facts["py_sampling"]
    others = {"end_id", "pad_id", *AT_EACH_CALL, *LEFT["py_sampling"], *ALWAYS["py_sampling"]}
    assert fields.keys() == set(python.values()) | others
    for name, field in python.items():
        if field not in ALWAYS["py_sampling"]:
            assert fields[field] == {"default": getattr(Sampling, name)}, field
    assert {name: fields[name] for name in AT_EACH_CALL} == {key: {"default": None} for key in AT_EACH_CALL}


def _assert_left(facts: Facts, section: str) -> None:
    known = {name: fact.get("default") for name, fact in facts[section].items()}
    assert not is_newest(facts) or LEFT[section].keys() <= known.keys()
    assert {name: known[name] for name in LEFT[section] if name in known} == {
        name: value for name, value in LEFT[section].items() if name in known
    }
    strangers = known.keys() - LEFT[section].keys() - ALWAYS.get(section, {}).keys()
    if section.endswith("_generate"):
        assert strangers == {"batch_input_ids"}, strangers


def check_sessions(facts: Facts) -> None:
    """Check answers of both runners, whole and streamed, with logits, log-probabilities and beams, and other ranks."""
    if not runs(facts):
        return
    with tempfile.TemporaryDirectory() as directory:
        for options in (RuntimeOptions(), RuntimeOptions(use_py_session=True)):
            seen = RecordedCalls()
            with installed(facts, seen):
                _answers(Double(Path(directory), seen), options, CPP if options == RuntimeOptions() else PYTHON)
        with installed(facts, RecordedCalls()):
            _kinds(Double(Path(directory), RecordedCalls()))
        _follows(facts, Path(directory))


def check_descriptions(facts: Facts) -> None:
    """Check facts that the sessions are written for and that the double cannot show."""
    if not runs(facts):
        return
    for prefix in ("cpp", "py"):
        assert facts[f"{prefix}_outputs"]["context_logits"]["axes"] == ["list", "prompt_len", "vocab_padded"]
        assert facts[f"{prefix}_outputs"]["generation_logits"]["built_with"] == "gather_generation_logits"
    assert facts["cpp_behaviour"]["unknown_keywords"]["value"] == "ignored"
    assert facts["cpp_behaviour"]["padding_needs"]["value"] == "end_id"
    assert facts["py_behaviour"] == {"every_rank_calls": {"value": True}, "stream_covers": {"value": "all rows"}}
    assert facts["no_end"]["end_id"]["value"] == NO_END
    assert facts["inflight_config"] == {
        "GptJsonConfig": {"module": "tensorrt_llm.bindings", "read_by": "parse_file"},
        "model_config": {"of": "GptJsonConfig"},
        "supports_inflight_batching": {"of": "model_config"},
    }


def _answers(double: Double, options: RuntimeOptions, kind: str) -> None:
    session = double.open(options)
    assert [name for name, _ in double.seen.opened] == [kind]
    requests = [Request((1, 3), 4, 50_000), Request((1, 1), 6, 8), Request((2,), 3)]
    expected = [(4, 8, 16, 32), (2, 4, 8), (2, 4, 8)]
    assert [result.output_ids for result in generate(session, requests)] == expected
    events = list(stream(session, requests))
    assert [tuple(e.token_id for e in events if e.index == i) for i in range(3)] == expected
    for index in range(2):
        session.in_flight.submit(TokenSequence(index, Request((index,), 1), is_watched=True))
    assert len(session.in_flight.step()) == (2 if kind == PYTHON else 1)  # a part of a C++ stream covers some requests
    if kind == CPP:
        session.in_flight.step()
    [beams] = generate(session, [Request((1, 3), 2, sampling=Sampling(num_beams=3))])
    assert [beam.output_ids for beam in beams.beams] == [(4, 8), (5, 10), (6, 12)]
    gathering = double.open(options, gather_context_logits=True, gather_generation_logits=True)
    [result] = generate(gathering, [Request((1, 3), 2, return_context_logits=True, return_generation_logits=True)])
    assert result.context_logits is not None and result.context_logits.argmax(1).tolist() == [1, 4]
    assert result.generation_logits is not None and result.generation_logits.argmax(1).tolist() == [4, 8]
    [one] = generate(gathering, [Request((1, 3), 2, return_generation_logits=True)])
    assert one.generation_logits is not None
    plain = double.open(
        RuntimeOptions(use_py_session=kind == PYTHON, gather_generation_logits=kind == CPP and _can(double))
    )
    if plain.spec.gather_generation_logits:
        generate(plain, [Request((1, 3), 2, return_generation_logits=True)])
    if kind == CPP:
        asking = Sampling(log_probs=0)
        [told] = generate(session, [Request((1, 1), 6, 8, sampling=asking)])
        assert [token.log_prob for token in told.log_probs] == [-0.5, -0.5, -0.25]
        assert beams.beams[0].score == -0.5
    _raw(double, kind)


def _can(double: Double) -> bool:
    return "gather_generation_logits" in double.seen.opened[0][1]


def _raw(double: Double, kind: str) -> None:
    """Check types and padding of outputs, which the sessions do not look at."""
    import sys

    import torch

    runner = getattr(sys.modules["tensorrt_llm.runtime"], kind).from_dir(engine_dir=str(double.engine()))
    given: dict[str, Any] = {"end_id": 9, "max_new_tokens": 2, "return_dict": True, "output_sequence_lengths": True}
    if kind == CPP:
        given |= {"output_log_probs": True, "output_cum_log_probs": True}
    made = runner.generate([torch.tensor([1, 3]), torch.tensor([2, 2, 1])], output_generation_logits=True, **given)
    assert made["output_ids"].tolist()[0][0][:5] == [1, 3, 4, 8, 9] and made["output_ids"].shape == (2, 1, 48)
    assert made["sequence_lengths"].tolist() == [[4], [5]] and made["generation_logits"].shape == (2, 1, 2, 56)
    types = {name: str(tensor.dtype) for name, tensor in made.items()}
    floats = ["generation_logits"] + ["log_probs", "cum_log_probs"] * (kind == CPP)
    assert types == dict.fromkeys(("output_ids", "sequence_lengths"), "torch.int32") | dict.fromkeys(
        floats, "torch.float32"
    )


def _kinds(double: Double) -> None:
    """Check which engines the C++ runner does not run."""
    for changes in ({"plugins": {"gpt_attention_plugin": None}}, {"plugins": {"remove_input_padding": False}},
                    {"kv_cache_type": "CONTINUOUS"}):  # fmt: skip
        session = double.open(**changes)  # type: ignore[arg-type]
        assert session._runner.kind == PYTHON, changes  # type: ignore[attr-defined]


def _follows(facts: Facts, directory: Path) -> None:
    """Check that on other ranks than 0 the C++ runner's answer is empty, and the Python one's is not used."""
    import pickle

    from opt_trt.backends.trtllm import open as open_rank
    from opt_trt.config.scheduling import Scheduling
    from opt_trt.runtime.follow import Opening
    from opt_trt.runtime.ranks import Alone
    from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit

    class Second(Alone):
        rank = 1

    with installed(facts, RecordedCalls(), rank=1):
        engine = Double(directory, RecordedCalls()).engine(world_size=2)
        for options in (RuntimeOptions(), RuntimeOptions(use_py_session=True)):
            session = open_rank(Opening(engine, KvCacheLimit(), Scheduling(), options), Second())
            live = session._runner.live  # type: ignore[attr-defined]
            assert live.opened["rank"] == 1
            call = {"batch_input_ids": [], "max_new_tokens": 1, "end_id": -1}
            if options == RuntimeOptions():
                assert live.generate(**call) == []
                session.obey(memoryview(pickle.dumps(call)))
