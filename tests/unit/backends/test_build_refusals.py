"""Checkpoints that can be converted and not be built are named by the builder, before it compiles anything."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from opt_trt.backends import build as builder
from opt_trt.backends import choose_backend
from opt_trt.backends.inductor.builder.limits import resolve_limits
from opt_trt.cli import parse
from opt_trt.config.backend_answers import ANSWERS
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.tensorrt_flags import TensorRtOptions
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.model.config import ModelConfig
from opt_trt.plugins.cpu.isa import X86_AVX512
from tests.unit._engines import MODEL as VALUES
from tests.unit._models import Model

MODEL = ModelConfig.from_dict(VALUES, "here")


@pytest.fixture(autouse=True)
def any_torch(monkeypatch):
    """Nothing is compiled here: any torch will do."""
    monkeypatch.setattr("opt_trt.backends.inductor.OLDEST_TORCH", "2")


def test_the_embedded_backend_names_the_torch_it_needs(monkeypatch):
    monkeypatch.setattr("opt_trt.backends.inductor.OLDEST_TORCH", "99.1")
    with pytest.raises(UserError, match=r"^backend inductor: it compiles with torch 99\.1 or newer, found \d\S*; inst"):
        choose_backend("inductor")


def test_an_activation_that_engines_do_not_compute_is_named(tmp_path: Path) -> None:
    model = Model(config={"activation_function": "gelu"}).write(tmp_path / "model")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "c"), log_level="error"))
    with pytest.raises(
        UserError, match=r"has hidden_act 'gelu', and the embedded engine computes relu only; build .*llm"
    ):
        builder.build(BuildConfig(checkpoint_dir=str(tmp_path / "c"), backend="inductor", dry_run=True))


def test_flags_of_tensorrt_alone_are_refused_by_the_embedded_backend() -> None:
    given = {
        "max_beam_width": "4",
        "visualize_network": "d",
        "tensorrt_llm_version": "1.2.1",
        "kv_cache_type": "disabled",
    }
    for f in fields(TensorRtOptions):
        refusal = ANSWERS["inductor"][f.name]
        value = given.get(f.name) or next((c for c in f.metadata["flag"].choices or () if c not in refusal.neutral), "")
        config = parse(BuildConfig, ["--checkpoint_dir", "c", f"--{f.name}", *value.split()])
        with pytest.raises(
            UserError, match=f"^--{f.name}( {value})? is not supported{re.escape(refusal.why(f'--{f.name}'))}$"
        ):
            resolve_limits(MODEL, config)
        for neutral in refusal.neutral:
            resolve_limits(MODEL, parse(BuildConfig, ["--checkpoint_dir", "c", f"--{f.name}", neutral]))


VNNI = X86_AVX512 | {"avx512_vnni"}


@pytest.mark.parametrize(
    ("flags", "model", "processor", "text"),
    [
        (
            [],
            {"dtype": "float16"},
            VNNI,
            "needs int8 or int4 weights .*, found dtype float16, weights float16 in c; conv",
        ),
        (
            ["--lm_head_precision", "int8"],
            {},
            VNNI,
            "needs int8 or int4 weights in a model of float16 .*, found dtype float32, weights float32",
        ),
        ([], {"dtype": "float16"}, X86_AVX512, "needs a processor with avx512_vnni, .*, found one without; drop"),
        (
            ["--target_isa", "avx512"],
            {"dtype": "float16"},
            VNNI,
            "needs .*, found --target_isa avx512; drop",
        ),
        (
            ["--deterministic"],
            {},
            VNNI,
            "chooses kernels by the number of tokens, found --deterministic beside it; drop",
        ),
        (["--gemm_plugin", "disable"], {}, VNNI, "chooses .*, found --gemm_plugin disable beside it"),
    ],
)
def test_context_int8_is_refused_where_no_product_could_round(monkeypatch, flags, model, processor, text):
    monkeypatch.setattr("opt_trt.plugins.cpu.isa.processor_flags", lambda: processor)
    with pytest.raises(UserError, match=f"^--context_int8 {text}"):
        resolve_limits(replace(MODEL, **model), parse(BuildConfig, ["--checkpoint_dir", "c", "--context_int8", *flags]))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--max_seq_len", "13"], "--max_seq_len 13 is beyond the checkpoint's position table of 12 rows"),
        (["--max_input_len", "8", "--max_output_len", "5"], r"--max_input_len \+ --max_output_len = 13 is beyond"),
        (["--gemm_plugin", "float16"], "--gemm_plugin float16 does not fit a checkpoint of float32"),
        (["--use_parallel_embedding"], "--use_parallel_embedding: the checkpoint was converted without it"),
    ],
)
def test_flags_that_do_not_fit_the_checkpoint_are_refused_whatever_the_backend(tmp_path, flags, text):
    model = Model().write(tmp_path / "model")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "c"), dtype="float32", log_level="error"))
    for backend in ("inductor", "tensorrt_llm"):
        argv = ["--checkpoint_dir", str(tmp_path / "c"), "--backend", backend, "--dry_run", *flags]
        with pytest.raises(UserError, match=text):
            builder.build(parse(BuildConfig, argv))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"max_input_len": 2000}, "--max_input_len 2000: prompts have at most 12 tokens, by --max_seq_len\n"),
        ({"max_input_len": 9, "max_num_tokens": 8}, "--max_input_len 9: prompts have at most 8 tokens, by --max_num_t"),
        ({"max_input_len": 2000, "log_level": "error"}, ""),
        ({}, ""),
    ],
)
def test_a_prompt_limit_that_is_cut_is_said(flags: dict[str, object], said: str, capsys) -> None:
    model = replace(MODEL, max_position_embeddings=12)
    resolve_limits(model, BuildConfig(checkpoint_dir="c", **flags))
    printed = capsys.readouterr().err
    assert printed.startswith(said) and bool(printed) == bool(said)
