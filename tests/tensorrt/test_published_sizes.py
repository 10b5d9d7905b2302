"""Engines of published OPTs with random weights: the time and the memory that building one takes."""

from __future__ import annotations

import resource
from dataclasses import asdict, replace

import pytest
from models import POSITIONS, SHAPES, VOCABULARY, random_model

from opt_trt.backends.tensorrt.bindings import GENERATION
from opt_trt.backends.tensorrt.compiler_process import run_compiler
from opt_trt.backends.tensorrt.engine_memory import engine_memory
from opt_trt.backends.tensorrt.engine_plan import plan_engine
from opt_trt.backends.tensorrt.kernels import read_kernels
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.model.config import ModelConfig
from tests.tensorrt.conftest import job_of
from tests.unit._engines import MODEL
from tests.unit.backends.tensorrt._networks import make_checkpoint, save_model

MOST_SECONDS = {"opt-125m": 30, "opt-350m": 60}
WEIGHTS = {
    "float16": {},
    "int8": {"use_weight_only": True},
    "int4": {"use_weight_only": True, "weight_only_precision": "int4"},
}


def most_bytes(weights: int, times: float = 1.3) -> float:
    """Return the memory that a build may allocate, for so many bytes of weights in the engine."""
    return 400e6 + times * weights


def processor_seconds() -> float:
    """Return the time that ended children took; on an idle machine a build does not take longer than this."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", MOST_SECONDS)
def test_a_published_size_builds_in_the_time_and_memory_that_were_promised(tmp_path, name, weights):
    model = random_model(name, tmp_path / "model")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "c"), log_level="error", **WEIGHTS[weights]))
    checkpoint = Checkpoint(tmp_path / "c")
    plan = plan_engine(checkpoint.config, BuildConfig(checkpoint_dir=str(tmp_path / "c")), is_rtx=True)
    started = processor_seconds()
    job = job_of(tmp_path / "c", tmp_path / "plan", list(plan.target_sms), shape=asdict(plan.shape))
    compiled = run_compiler(job, talks=False)
    seconds, table = processor_seconds() - started, read_kernels(compiled.messages, checkpoint.config.num_hidden_layers)
    print(
        f"{name} {weights}: {seconds:.1f} s of the processor, {compiled.anonymous_bytes / 1e6:.0f} MB allocated for "
        f"{table.weight_bytes / 1e6:.0f} MB of weights, plan of {(tmp_path / 'plan').stat().st_size / 1e6:.0f} MB"
    )
    assert table.fused(GENERATION) == table.num_layers and table.copies(GENERATION) == table.widened(GENERATION) == 0
    assert seconds < MOST_SECONDS[name]
    assert compiled.anonymous_bytes < most_bytes(table.weight_bytes)
    estimated = engine_memory(checkpoint, plan)
    assert estimated.weights == pytest.approx(table.weight_bytes, rel=0.05)
    assert (estimated.prompt, estimated.generation) == pytest.approx(table.activation_bytes, rel=0.4)


@pytest.mark.parametrize("algorithm", [None, "W8A16", "W4A16"])
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "demo"])
def test_every_published_size_is_planned(name, algorithm):
    shape = SHAPES[name]
    model = replace(
        ModelConfig.from_dict(MODEL, "here"), dtype="float16", num_hidden_layers=shape.layers, vocab_size=VOCABULARY,
        num_attention_heads=shape.heads, hidden_size=shape.hidden, intermediate_size=shape.ffn,
        max_position_embeddings=POSITIONS, quantization={"quant_algo": algorithm},
    )  # fmt: skip
    plan = plan_engine(model, BuildConfig(checkpoint_dir="c"), is_rtx=True)
    assert plan.target_sms == (80, 86, 89, 120, 121)
    assert plan.shape.capacity > POSITIONS and plan.shape.slots > 50


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_a_layer_of_opt_6_7b_is_read_where_it_lies(tmp_path, mode):
    shape = SHAPES["opt-6.7b"]
    sizes = {
        "hidden_size": shape.hidden, "word_embed_proj_dim": shape.hidden, "num_attention_heads": shape.heads,
        "ffn_dim": shape.ffn, "num_hidden_layers": 1, "vocab_size": 512, "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    checkpoint = make_checkpoint(save_model(tmp_path / "model", **sizes), tmp_path / "c", "float16", mode)
    plan = plan_engine(checkpoint.config, BuildConfig(checkpoint_dir=str(tmp_path / "c")), is_rtx=True)
    started = processor_seconds()
    job = job_of(tmp_path / "c", tmp_path / "plan", list(plan.target_sms), shape=asdict(plan.shape))
    compiled = run_compiler(job, talks=False)
    table = read_kernels(compiled.messages, num_layers=1)
    print(
        f"a layer of opt-6.7b {mode}: {processor_seconds() - started:.1f} s of the processor, "
        f"{compiled.anonymous_bytes / 1e6:.0f} MB allocated for {table.weight_bytes / 1e6:.0f} MB of weights"
    )
    assert (table.fused(GENERATION), table.copies(GENERATION), table.widened(GENERATION)) == (1, 0, 0)
    assert table.a_layer(GENERATION) <= 9
    # The builder holds int4 weights twice; those of smaller models are small beside the tables.
    assert compiled.anonymous_bytes < most_bytes(table.weight_bytes, 2.0 if mode == "int4" else 1.3)
    assert engine_memory(checkpoint, plan).weights == pytest.approx(table.weight_bytes, rel=0.05)
