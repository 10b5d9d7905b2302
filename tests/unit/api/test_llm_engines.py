"""An engine is made of a model once, and again only when something about it has changed."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from opt_trt import LLM
from opt_trt.api import engines, llm
from opt_trt.api.engines import engine_of
from opt_trt.checkpoint.reader import read_config
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.llm_options import LlmOptions, llm_options
from opt_trt.config.scheduling import Scheduling
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.unit._decoders import SumDecoder
from tests.unit._models import Model
from tests.unit._whole_engine import write_engine

# An engine of TensorRT-LLM, which checks its files when it is opened.
CONFIG = {"version": "1.2.1", "pretrained_config": {}, "build_config": {}}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[BuildConfig, str, str | None]]:
    """What was asked of the builder, with dtype and quantization of the checkpoint; nothing is compiled."""
    asked = []

    def build(config: BuildConfig) -> None:
        checkpoint = read_config(config.checkpoint_dir)
        asked.append((config, checkpoint.dtype, checkpoint.quant_algo))
        Path(config.output_dir).mkdir()
        (Path(config.output_dir) / "config.json").write_text(json.dumps(CONFIG))

    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Model().write(tmp_path / "model")


def test_the_second_time_it_is_there(model: Path, built: list, capsys: pytest.CaptureFixture[str]) -> None:
    first = engine_of(model, LlmOptions())
    said = capsys.readouterr()
    assert said.out == "" and said.err == f"opt_trt: making an engine of {model} in {first}, once for these options\n"
    assert engine_of(model, LlmOptions()) == first and len(built) == 1
    assert capsys.readouterr() == ("", "")
    assert sorted(path.name for path in first.parent.iterdir()) == [first.name, f"{first.name}.lock"]


def test_options_reach_converter_and_builder(model: Path, built: list) -> None:
    engine_of(model, LlmOptions())
    engine_of(model, LlmOptions(dtype="bfloat16", quantization="int4", max_batch_size=3, max_seq_len=9))
    assert [row[1:] for row in built] == [("float16", None), ("bfloat16", "W4A16")]
    assert (built[1][0].max_batch_size, built[1][0].max_seq_len, built[1][0].max_num_tokens) == (3, 9, 8192)


@pytest.mark.parametrize("change", ["options", "times", "contents", "place"])
def test_what_changes_the_engine_makes_another(model: Path, built: list, change: str) -> None:
    first, options = engine_of(model, LlmOptions()), LlmOptions()
    if change == "options":
        options = LlmOptions(quantization="int8")
    elif change == "times":
        os.utime(model / "model.safetensors", ns=(1, 1))
    elif change == "contents":
        train(model)
    else:
        model = Model().write(model.parent / "other")
    assert engine_of(model, options) != first and len(built) == 2


def train(model: Path) -> None:
    """Change all weights, but neither the sizes nor the times of files, as archives of another model may have them."""
    times = {file: os.stat(file).st_mtime_ns for file in model.iterdir()}
    tensors = {name: torch.randn_like(tensor) for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    for file, ns in times.items():
        os.utime(file, ns=(ns, ns))


def test_a_damaged_engine_is_made_again(
    model: Path, built: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(config: BuildConfig) -> None:
        built.append(config)
        write_engine(Path(config.output_dir))

    monkeypatch.setattr(engines, "build", write)
    engine = engine_of(model, LlmOptions())
    assert engine_of(model, LlmOptions()) == engine and len(built) == 1
    (engine / "rank0.engine").write_bytes(b"")
    capsys.readouterr()
    assert engine_of(model, LlmOptions()) == engine and len(built) == 2
    assert "rank0.engine is not as it was built: making it again" in capsys.readouterr().err


def test_what_does_not_change_the_engine_makes_none(model: Path, built: list) -> None:
    engine_of(model, LlmOptions())
    engine_of(model, LlmOptions(seed=5, max_tokens_in_paged_kv_cache=64, tokenizer="elsewhere"))
    assert len(built) == 1


def test_a_failure_leaves_nothing_behind(model: Path, built: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(config: BuildConfig) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engines, "build", interrupt)
        engine_of(model, LlmOptions())
    assert [path.suffix for path in (model.parent / "cache/opt_trt/engines").iterdir()] == [".lock"]
    assert engine_of(model, LlmOptions()).is_dir()


def test_who_wants_it_meanwhile_waits(model: Path, built: list, monkeypatch: pytest.MonkeyPatch) -> None:
    build, begun = engines.build, threading.Event()

    def slow(config: BuildConfig) -> None:
        begun.set()
        time.sleep(0.2)
        build(config)

    monkeypatch.setattr(engines, "build", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine_of, model, LlmOptions())
        begun.wait(60)
        assert engine_of(model, LlmOptions()) == first.result(60)
    assert len(built) == 1


def test_a_checkpoint_is_built_as_it_is(model: Path, tmp_path: Path, built: list) -> None:
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "ckpt"), dtype="float32"))
    engine_of(tmp_path / "ckpt", LlmOptions(max_batch_size=2))
    assert [row[1] for row in built] == ["float32"]
    with pytest.raises(UserError, match="ckpt is a checkpoint, for which dtype and quantization is settled; drop it"):
        engine_of(tmp_path / "ckpt", LlmOptions(dtype="float16", quantization="int8"))
    same = engine_of(tmp_path / "ckpt", LlmOptions(max_batch_size=2))
    assert engine_of(tmp_path / "ckpt", LlmOptions(max_batch_size=2, dtype="float32")) == same


def test_options_with_which_an_engine_was_built_are_taken(tmp_path: Path) -> None:
    """Scripts name them whatever the model is."""
    write_engine(tmp_path)
    keys = json.loads((tmp_path / "config.json").read_text())
    built, device = keys["build_config"], keys["device"]["type"]
    options = {"dtype": keys["pretrained_config"]["dtype"], "device": device, "max_seq_len": built["max_seq_len"]}
    assert engine_of(tmp_path, LlmOptions(**options, max_batch_size=built["max_batch_size"])) == tmp_path
    with pytest.raises(UserError, match="is an engine, for which quantization is settled; drop it"):
        engine_of(tmp_path, LlmOptions(**options, quantization="int8"))


def test_an_engine_is_itself(model: Path, built: list) -> None:
    engine = engine_of(model, LlmOptions())
    assert engine_of(engine, LlmOptions(seed=3)) == engine
    with pytest.raises(UserError, match="is an engine, for which max_seq_len is settled"):
        engine_of(engine, LlmOptions(max_seq_len=9))


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(
        UserError, match=r"in facebook/opt-125m, found no such .*: hf download facebook/opt-125m --local"
    ):
        engine_of(Path("facebook/opt-125m"), LlmOptions())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"unheard_of": 1}, "LLM has no option unheard_of; known are tokenizer, dtype, quantization"),
        ({"max_model_len": 9, "max_seq_len": 8}, "max_model_len is called max_seq_len here, and LLM was given both"),
        ({"max_batchsize": 3}, r"^LLM has no option max_batchsize; did you mean max_batch_size\?"),
        ({"max_seq_len": 64.0}, "^max_seq_len must be an integer or None, found 64.0"),
        ({"kv_cache_enable_block_reuse": "yes"}, "^kv_cache_enable_block_reuse must be True or False, found 'yes'"),
        ({"enable_prefix_caching": "no"}, "^kv_cache_enable_block_reuse must be True or False, found 'no'"),
        (
            {"gpu_memory_utilization": float("nan")},
            r"^kv_cache_free_gpu_memory_fraction must be in \(0, 1\], found nan",
        ),
        ({"seed": -1}, "^seed must be at least 0, found -1"),
        ({"tokenizer": 5}, "^tokenizer must be a directory, as text or a path, found 5"),
        ({"kv_cache_config": object()}, "^LLM has no kv_cache_config=.*: give kv_cache_free_gpu_memory_fraction, max_"),
        ({"build_config": {"max_batch_size": 2}}, "give max_batch_size, max_input_len, max_seq_len and max_num_tokens"),
        ({"quant_config": "int8"}, 'give quantization="int8" or "int4"'),
        ({"backend": "pytorch"}, "the engine says which backend runs it"),
        ({"pipeline_parallel_size": 2}, "--tp_size 2 .*mpirun -n 2"),
        ({"swap_space": 4}, "^LLM has no swap_space=4: .*computed again, never swapped; give 0"),
        ({"enable_lora": True}, "merge the adapter into its base model"),
        ({"context_chunk_size": 0}, "^context_chunk_size must be at least 1, found 0"),
        (
            {"scheduler_policy": "static"},
            "^scheduler_policy must be guaranteed_no_evict or max_utilization, found static",
        ),
        ({"tensor_parallel_size": 2}, "^LLM has no tensor_parallel_size=2: engines of several ranks .*--tp_size 2"),
        ({"dtype": "fp8"}, "dtype must be 'auto', 'float32', 'bfloat16', 'float16' or None, found 'fp8'"),
        ({"quantization": "awq"}, "quantization must be 'int8', 'int4' or None, found 'awq'"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, found 0"),
    ],
)
def test_options_that_cannot_act_are_refused_by_name(given: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        LLM("anywhere", **given)


def test_options_of_the_scheduler_and_the_cache_reach_the_session(
    model: Path, built: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_engine(*asked: object) -> DecoderSession:
        opened.append(asked)
        return DecoderSession(SumDecoder(), KvCacheLimit())

    monkeypatch.setattr(llm, "open_engine", open_engine)
    given = {"scheduler_policy": "max_utilization", "context_chunk_size": 9, "kv_cache_enable_block_reuse": True}
    for options in ({}, {"max_tokens_in_paged_kv_cache": 64, "kv_cache_free_gpu_memory_fraction": 0.5, **given}):
        LLM(model, **options).close()
    [engine] = {engine for engine, *_ in opened}  # built once: they say how to run it
    assert opened == [
        (engine, KvCacheLimit(), Scheduling()),
        (engine, KvCacheLimit(64, 0.5), Scheduling("max_utilization", 9, True)),
    ]


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"max_model_len": 9, "max_num_seqs": 3, "max_num_batched_tokens": 64},
         {"max_seq_len": 9, "max_batch_size": 3, "max_num_tokens": 64}),
        ({"gpu_memory_utilization": 0.5, "enable_prefix_caching": True},
         {"kv_cache_free_gpu_memory_fraction": 0.5, "kv_cache_enable_block_reuse": True}),
        ({"dtype": "half"}, {"dtype": "float16"}),
        ({"dtype": "fp16"}, {"dtype": "float16"}),
        ({"dtype": "bf16"}, {"dtype": "bfloat16"}),
        ({"dtype": "float"}, {"dtype": "float32"}),
        ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}),
        ({"dtype": np.float32}, {"dtype": "float32"}),
        ({"torch_dtype": torch.float16}, {"dtype": "float16"}),
        ({"load_in_8bit": True, "device_map": "auto"}, {"quantization": "int8"}),
        ({"device": "cpu", "max_batch_size": np.int64(2)}, {"device": "cpu", "max_batch_size": 2}),
        ({"trust_remote_code": True, "enforce_eager": True, "swap_space": 0, "disable_log_stats": True,
          "tokenizer_mode": "auto", "revision": None, "tensor_parallel_size": 1, "pipeline_parallel_size": 1,
          "enable_chunked_prefill": True, "load_format": "auto", "task": "generate", "seed": None, "backend": None,
          "build_config": None, "kv_cache_config": None, "quant_config": None}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_names_of_other_tools_are_taken(given: dict, same: dict) -> None:
    assert llm_options(given) == LlmOptions(**same)


@pytest.mark.parametrize(("own", "stored"), [("float32", "float16"), ("float16", "float16"), ("bfloat16", "bfloat16")])
def test_auto_is_the_models_type_if_it_has_16_bits(model: Path, built: list, own: str, stored: str) -> None:
    config = json.loads((model / "config.json").read_text())
    config.pop("dtype", None)
    (model / "config.json").write_text(json.dumps(config | {"torch_dtype": own}))
    engine = engine_of(model, llm_options({"dtype": "auto"}))
    assert [row[1] for row in built] == [stored]
    assert engine_of(engine, llm_options({"dtype": "auto"})) == engine


def test_the_model_may_be_a_path_and_nothing_else(model: Path, built: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "open_engine", lambda *asked: DecoderSession(SumDecoder(), KvCacheLimit()))
    LLM(model=model).close()
    for wrong in (None, 5, ["x"]):
        with pytest.raises(UserError, match=r"^model must be a directory, as text or a path, found"):
            LLM(wrong)
