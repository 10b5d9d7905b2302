"""Engines of a GPU where there is none: on which they open, which program a step takes, what is captured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from opt_trt.backends import open_engine
from opt_trt.backends.engine import check_gpu, seal
from opt_trt.backends.inductor.decoder.cuda import context_phase, to_device
from opt_trt.backends.inductor.decoder.program_table import (
    CONTEXT,
    HALF_CONTEXT,
    CudaProgramTable,
    replayed_rows,
)
from opt_trt.backends.inductor.decoder.step_buffers import NO_SLOT, StepBuffers
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.errors import UserError
from opt_trt.graph.decoder import layer_weights
from opt_trt.graph.programs import GraphShapes, layer_program
from opt_trt.model.config import ModelConfig
from opt_trt.ops import ReferenceOps
from opt_trt.plugins.cuda.gpu import Gpu
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.step import StepInputs
from tests._processes import run_python
from tests.unit._engines import MODEL, write_engine_config

H200 = Gpu("NVIDIA H200", "9.0")


@pytest.mark.parametrize(
    ("record", "gpu", "text"),
    [
        ({}, None, r"was built for GPUs of compute capability 9\.0 \(NVIDIA H200\), torch sees none here; run it on"),
        ({}, Gpu("NVIDIA A100", "8.0"), r"this is an NVIDIA A100 \(compute capability 8\.0\); .*build it again here"),
        ({"torch": "2.99.0"}, H200, r"was built with torch 2\.99\.0, this is torch .*build it again here"),
    ],
)
def test_an_engine_opens_on_gpus_like_its_own_only(tmp_path, monkeypatch, record, gpu, text):
    device = {"type": "cuda", "capability": "9.0", "gpu": "NVIDIA H200", "torch": torch.__version__}
    config = replace(write_engine_config(tmp_path), device=device | record)
    (tmp_path / "config.json").write_text(json.dumps(seal(config.to_dict())))
    monkeypatch.setattr("opt_trt.backends.inductor.decoder.cuda.visible_gpu", lambda: gpu)
    with pytest.raises(UserError, match=text):
        open_engine(tmp_path, KvCacheLimit())
    check_gpu(tmp_path, replace(config, device=device), H200)


def test_prompts_are_summed_in_fp16_unless_told(tmp_path):
    config = write_engine_config(tmp_path)
    half, brain = (
        replace(config, pretrained_config=replace(config.pretrained_config, dtype=dtype))
        for dtype in ("float16", "bfloat16")
    )
    assert context_phase(half, RuntimeOptions()) == HALF_CONTEXT
    assert context_phase(half, RuntimeOptions(enable_context_fmha_fp32_acc=True)) == CONTEXT
    assert context_phase(brain, RuntimeOptions()) == CONTEXT  # whose range fp16 does not have


def step(queries: list[int], wanted: int | None = None, hidden: bool = False) -> StepInputs:
    """Sequences that bring so many tokens each; `wanted` rows of logits, by default one each."""
    tokens, count = sum(queries), len(queries)
    return StepInputs(
        input_ids=torch.arange(tokens) + 10, position_ids=torch.arange(tokens) + 20,
        slot_mapping=torch.arange(tokens) + 30, query_start=torch.tensor([0, *queries]).cumsum(0).int(),
        kv_lens=torch.tensor(queries, dtype=torch.int32) + 40,
        block_tables=torch.arange(2 * count, dtype=torch.int32).view(count, 2),
        last_token_ids=torch.arange(count if wanted is None else wanted),
        hidden_token_ids=torch.arange(1) if hidden else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        (step([1]), 1), (step([1] * 3), 4), (step([1] * 64), 64), (step([1] * 65), 128), (step([1] * 256), 256),
        (step([1] * 257), None), (step([1, 2]), None), (step([1, 1], wanted=1), None), (step([1], hidden=True), None),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)  # fmt: skip
def test_steps_that_only_generate_are_replayed_by_powers_of_two(inputs, rows):
    assert replayed_rows(inputs) == rows


TABLE = CudaProgramTable(sequences=100, tokens=8192, logits=100, has_half_sums=True)


@pytest.mark.parametrize(
    ("inputs", "layer", "head"),
    [
        (step([1]), "layer_generation_1", "head_1"),
        (step([1] * 5), "layer_generation_8", "head_8"),
        (step([1] * 65), "layer_generation_beyond_64", "head_beyond_64"),
        (step([5]), "layer_half_context_64", "head_1"),
        (step([60, 1, 1, 1, 1]), "layer_half_context_64", "head_8"),
        (step([64, 1]), "layer_half_context_beyond_64", "head_2"),
        (step([3, 3], wanted=6), "layer_half_context_64", "head_8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_step_takes_the_programs_of_its_phase_and_buckets(inputs, layer, head):
    assert TABLE.layer_of(inputs, HALF_CONTEXT) == layer
    assert TABLE.head_of(inputs) == head
    assert {layer, head} <= set(TABLE.names())


def test_an_engine_has_the_programs_its_steps_can_take_and_no_more():
    assert CudaProgramTable(sequences=3, tokens=12, logits=3, has_half_sums=False).names() == (
        "embedding", "layer_generation_1", "layer_generation_2", "layer_generation_4", "layer_context_16", "head_1",
        "head_2", "head_4",
    )  # fmt: skip
    assert len(TABLE.names()) == 1 + 8 + 4 + 8


def test_captured_steps_read_a_step_and_rows_that_change_nothing():
    buffers = StepBuffers(rows=4, width=3, device=torch.device("cpu"))
    fixed, pointers = buffers.inputs, [t.data_ptr() for t in (buffers.inputs.input_ids, buffers.inputs.block_tables)]
    waiting = buffers.packed(step([1] * 4)), buffers.packed(step([1, 1]))  # as on a GPU that is not done yet
    for packed in waiting:
        buffers.load(packed)
    assert fixed.input_ids.tolist() == [10, 11, 0, 0]
    assert fixed.position_ids.tolist() == [20, 21, 0, 0]
    assert fixed.slot_mapping.tolist() == [30, 31, NO_SLOT, NO_SLOT]
    assert fixed.kv_lens.tolist() == [41, 41, 1, 1]
    assert fixed.block_tables[:2, :2].tolist() == [[0, 1], [2, 3]]
    assert fixed.query_start.tolist() == [0, 1, 2, 3, 4] and fixed.last_token_ids.tolist() == [0, 1, 2, 3]
    assert [t.data_ptr() for t in (fixed.input_ids, fixed.block_tables)] == pointers
    assert all(getattr(fixed, name).is_contiguous() for name in ("slot_mapping", "kv_lens", "block_tables"))


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (2, 3), (4, 5)])
def test_captured_inputs_begin_at_16_bytes(rows, width):
    inputs = StepBuffers(rows, width, torch.device("cpu")).inputs
    first = inputs.input_ids.data_ptr()
    for name in ("position_ids", "slot_mapping", "kv_lens", "block_tables"):
        assert (getattr(inputs, name).data_ptr() - first) % 16 == 0


def test_a_step_is_moved_whole():
    whole = replace(step([2, 1]), greedy=True)
    there = to_device(whole, torch.device("meta"))
    assert {t.device.type for t in vars(there).values() if isinstance(t, torch.Tensor)} == {"meta"}
    assert there.greedy and there.hidden_token_ids is None


def test_opening_an_engine_imports_neither_triton_nor_a_compiler():
    code = "import sys, opt_trt.backends.inductor; print(*sorted({'triton', 'torch._inductor'} & sys.modules.keys()))"
    found = run_python("-c", code)
    assert (found.stdout, found.returncode) == ("\n", 0)


@pytest.mark.parametrize("alone", [True, False])
def test_examples_of_generation_have_a_length_for_every_token(alone):
    """A compiler may run a program's kernels on them, and those of generation read as many lengths as tokens."""
    config = ModelConfig.from_dict(MODEL, "here")
    names = layer_weights(config)
    shapes = GraphShapes(4, {name: ((8,), torch.float32) for name in names}, one_token_each=alone)
    (x, _, _, (slots, starts, lens, tables)), axes = (
        getattr(layer_program(config, ReferenceOps(), shapes, names), name) for name in ("args", "dynamic_shapes")
    )
    assert (len(lens) == len(x)) == (axes[3][2][0] is axes[0][0]) == alone
    assert len(starts) - 1 == len(lens) == len(tables) and len(slots) == len(x)
