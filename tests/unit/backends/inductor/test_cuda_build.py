"""Which flags give an engine for a GPU, and what cannot be built for one; no GPU is needed to decide it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from opt_trt.backends import build as builder
from opt_trt.backends.inductor.compiler.targets import HEADERS, cuda_home
from opt_trt.cli import parse
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.plugins.cuda.gpu import Gpu, target_gpu
from tests.unit._models import Model

H200 = Gpu("NVIDIA H200", "9.0")


@pytest.fixture
def of_machine(monkeypatch):
    """Say which GPU the machine has."""

    def say(gpu: Gpu | None) -> None:
        monkeypatch.setattr("opt_trt.backends.inductor.OLDEST_TORCH", "2")
        builder = import_module("opt_trt.backends.inductor.builder.builder")
        monkeypatch.setattr(builder, "visible_gpu", lambda: gpu)

    return say


def build(tmp_path: Path, *flags: str, dtype: str = "float16", **converting: object) -> None:
    model = Model().write(tmp_path / "model")
    target = tmp_path / "checkpoint"
    convert(ConvertConfig(model_dir=str(model), output_dir=str(target), dtype=dtype, log_level="error", **converting))
    argv = ["--checkpoint_dir", str(target), "--backend", "inductor", "--dry_run", *flags]
    builder.build(parse(BuildConfig, argv))


def test_the_gpu_is_taken_where_there_is_one():
    assert target_gpu(None, H200) == target_gpu("cuda", H200) == H200
    assert target_gpu(None, None) is target_gpu("cpu", None) is target_gpu("cpu", H200) is None


def test_a_gpu_that_is_not_there_cannot_be_built_for(tmp_path, of_machine):
    of_machine(None)
    with pytest.raises(UserError, match=r"^--device cuda: tactics are timed where .* sees no GPU here; build where"):
        build(tmp_path, "--device", "cuda")


def test_a_dry_run_names_the_gpu(tmp_path, of_machine, capsys):
    pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")
    of_machine(H200)
    build(tmp_path)
    printed = capsys.readouterr().out
    assert "inductor on cuda, NVIDIA H200 (compute capability 9.0)\n" in printed
    assert " KB, copied to the GPU\n" in printed
    build(tmp_path, "--device", "cpu")
    assert "inductor on cpu, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "converting", "text"),
    [
        (["--target_isa", "avx2"], {}, "--target_isa avx2 is not supported: it names instructions of a processor"),
        (["--deterministic"], {}, "--deterministic is not supported: on a GPU sums are taken in another order"),
        (["--opt_num_tokens", "4"], {}, "--opt_num_tokens 4 is not supported: on a GPU every bucket of tokens has"),
        (["--context_fmha", "disable"], {}, "--context_fmha disable is not supported: on a GPU a fused kernel"),
        (["--gpt_attention_plugin", "disable"], {}, "--gpt_attention_plugin disable is not supported: no library"),
        (["--context_fmha_fp32_acc"], {}, "give run.py --enable_context_fmha_fp32_acc"),
        ([], {"dtype": "float32"}, "is of float32, .* compute in float16 or bfloat16; convert .* or give --device cpu"),
    ],
    ids=str,
)
def test_what_no_gpu_engine_is_built_of_is_refused_by_name(tmp_path, of_machine, flags, converting, text):
    pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")
    of_machine(H200)
    with pytest.raises(UserError, match=text):
        build(tmp_path, *flags, **converting)


def test_headers_are_taken_where_all_of_them_are(tmp_path):
    bare, part, whole = (tmp_path / name for name in ("bare", "part", "whole"))
    for directory, headers in ((part, HEADERS[:1]), (whole, HEADERS)):
        for header in headers:
            (directory / "include" / header).parent.mkdir(parents=True, exist_ok=True)
            (directory / "include" / header).touch()
    assert cuda_home([bare, part, whole]) == str(whole)
    with pytest.raises(UserError, match=r"needs CUDA's headers \(cuda\.h, .*\), found them in none of .*bare, .*part"):
        cuda_home([bare, part])
