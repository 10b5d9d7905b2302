"""A build for a GPU from the checkpoint to text; only the compiler and the driver are left out."""

from __future__ import annotations

import functools
import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from opt_trt.backends.inductor.decoder import loading
from opt_trt.runtime.in_flight import generate

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.backends.inductor.builder import builder
from opt_trt.backends.inductor.builder import cuda as cuda_target
from opt_trt.backends.inductor.builder import packaging as programs_module
from opt_trt.backends.inductor.decoder import cuda as cuda_decoder
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.convert.convert import convert
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.cuda.gpu import Gpu
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from tests.triton._engine import Eager, Rerun
from tests.triton.test_engine import greedy, oracle
from tests.triton.test_tune import Turns
from tests.unit._cuda_engine import AtOnce
from tests.unit._reference_decoder import random_model

H200 = Gpu("NVIDIA H200", "9.0")
LIMITS = {"max_batch_size": 1, "max_num_tokens": 4, "max_seq_len": 12, "tokens_per_block": 4}


@pytest.fixture
def programs(device, monkeypatch, tmp_path):
    """The programs of the last build by name; the compiler's and the driver's part is played here."""
    made = {}

    def compiled(spec, extra):
        made[spec.name] = Eager(spec)
        assert extra
        return [str(tmp_path / spec.name)]

    @contextmanager
    def compilers(compilation, cache):
        yield SimpleNamespace(compile=compiled)

    monkeypatch.setattr("opt_trt.plugins.tune.timing.ROUNDS", 0)
    monkeypatch.setattr(gemm, "TACTICS", (gemm.GEMV[0], gemm.CUBLAS))
    monkeypatch.setattr(attention, "TACTICS", (attention.SPLIT_KEYS[1], attention.FLASH, attention.HALF_FLASH))
    monkeypatch.setattr("opt_trt.plugins.tune.cuda.MOST_COPIES", 1)
    monkeypatch.setattr(cuda_target, "CudaTarget", functools.partial(cuda_target.CudaTarget, device=device))
    monkeypatch.setattr(cuda_target, "GraphClock", Turns)
    monkeypatch.setattr(cuda_target, "for_gpu", lambda gpu, kernels: None)
    monkeypatch.setattr(cuda_target, "open_inductor", compilers)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(programs_module, "_package", lambda programs, out: out.write_text(" ".join(programs)))
    monkeypatch.setattr(loading, "load_programs", lambda package, names: [made[name] for name in names])
    for module in (builder, cuda_decoder):
        monkeypatch.setattr(module, "visible_gpu", lambda: H200)
    monkeypatch.setattr(cuda_decoder, "on_gpu", lambda weight: weight.to(device))
    monkeypatch.setattr(cuda_decoder, "SharedCaptures", lambda: Rerun)
    monkeypatch.setattr(cuda_decoder, "put", AtOnce())
    return made


def test_an_engine_is_built_recorded_opened_and_says_what_transformers_says(programs, tmp_path):
    model_dir, checkpoint, engine = random_model("pre-norm", tmp_path / "model"), tmp_path / "c", tmp_path / "e"
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(checkpoint), dtype="float16", log_level="error"))
    flags = {"backend": "inductor", "output_timing_cache": str(tmp_path / "model.cache"), "log_level": "error"}
    build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir=str(engine), **flags, **LIMITS))

    record = json.loads((engine / "config.json").read_text())
    assert {name: record["device"][name] for name in ("type", "gpu", "capability", "torch")} == {
        "type": "cuda", "gpu": "NVIDIA H200", "capability": "9.0", "torch": torch.__version__
    }  # fmt: skip
    assert record["tactics"]["attention"] == ["split_keys_2", "flash", "half_flash"]
    assert [len(record["tactics"][site]) for site in ("qkv", "head")] == [3, 1]  # of up to 1, 2 and 4 tokens; of 1
    assert {file.name for file in engine.iterdir()} == {"config.json", "rank0.engine", "rank0.weights.safetensors"}
    assert (engine / "rank0.engine").read_text().split() == list(programs)
    assert "NVIDIA H200" in (tmp_path / "model.cache").read_text()

    limit, options = KvCacheLimit(max_tokens=32), RuntimeOptions(enable_context_fmha_fp32_acc=True)
    [result] = generate(open_engine(engine, limit, options=options), [Request((5, 9, 17, 30), 3)])
    assert result.output_ids == greedy(oracle(model_dir), result.prompt_ids, 3)
    assert {name for name, program in programs.items() if program.runs} == {
        "embedding", "layer_context_4", "layer_generation_1", "head_1"
    }  # fmt: skip


@pytest.mark.slow
def test_ranks_share_the_programs_of_their_stage(programs, tmp_path):
    """Tactics are tried on a rank's own sizes, programs are made once."""
    model_dir, checkpoint, engine = random_model("pre-norm", tmp_path / "model"), tmp_path / "c", tmp_path / "e"
    converting = {"dtype": "float16", "log_level": "error", "tp_size": 2, "pp_size": 2}
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(checkpoint), **converting))
    flags = {"backend": "inductor", "output_timing_cache": str(tmp_path / "model.cache"), "log_level": "error"}
    build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir=str(engine), **flags, **LIMITS))

    each = {f"rank{rank}.{kind}" for rank in range(4) for kind in ("engine", "weights.safetensors")}
    assert {file.name for file in engine.iterdir()} == {"config.json", *each}
    packaged = [(engine / f"rank{rank}.engine").read_text().split() for rank in range(4)]
    assert packaged[0] == packaged[1] == [name for name in programs if not name.startswith("head")]
    assert packaged[2] == packaged[3] == [name for name in programs if name != "embedding"]
    timed = (tmp_path / "model.cache").read_text()
    assert "n=48 k=32" in timed and "n=96" not in timed  # a half of q, k and v of 32 features
