"""A layer replayed as a CUDA graph, and compiled by AOTInductor, computes what its kernels do one by one."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from torch.export import Dim

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.cuda.graphs import capture
from opt_trt.plugins.gemm import cuda as gemm
from tests.triton._layers import HIDDEN, layer_pair
from tests.triton._problems import Shape, attention_step

SHAPE = Shape(2, 64, 32)


@pytest.fixture
def generating():
    """A layer of int8, and the arguments of a generation step of three sequences."""
    pair = layer_pair("float16", "int8")
    layer = pair.on_gpu(4, gemm.SPLIT[1], attention.SPLIT_KEYS[1])
    used = attention_step(SHAPE, torch.float16, (40, 1, 70), (1, 1, 1)).to("cuda")
    x = torch.randn(3, HIDDEN, device="cuda", dtype=torch.float16)
    return layer, (x, [w.cuda() for w in pair.stored], used.kv_cache, list(astuple(used.step)))


def replays_as_sequences_grow(run, layer, args):
    """True if replays of `run(*args)` give what `layer` gives, at lengths the graph was not captured with."""
    x, weights, cache, (slots, starts, lens, tables) = args
    captured = capture(lambda: run(x, weights, cache, [slots, starts, lens, tables]))
    for _ in range(3):
        x.normal_()
        lens += 1
        last = tables.gather(1, ((lens - 1) // SHAPE.block_tokens).long()[:, None])[:, 0].long()
        slots.copy_(last * SHAPE.block_tokens + (lens - 1) % SHAPE.block_tokens)
        expected = layer(x, weights, cache.clone(), [slots, starts, lens, tables])
        captured.replay()
        torch.cuda.synchronize()
        if not torch.equal(captured.result, expected):
            return False
    return True


def test_a_captured_step_follows_growing_sequences(generating):
    layer, args = generating
    assert replays_as_sequences_grow(layer, layer, args)


def test_equal_steps_give_equal_bits(generating):
    layer, (x, weights, cache, step) = generating
    first = layer(x, weights, cache.clone(), step)
    assert all(torch.equal(first, layer(x, weights, cache.clone(), step)) for _ in range(50))


def test_a_compiled_layer_needs_no_python_and_can_be_captured(generating, tmp_path):
    from torch._C._aoti import AOTIModelPackageLoader

    layer, args = generating
    x, weights, cache, step = args
    tokens, blocks, width = (Dim(name, min=1) for name in ("tokens", "blocks", "width"))
    axes = [{0: tokens}, {0: tokens + 1}, {0: tokens}, {0: tokens, 1: width}]
    shapes = ({0: tokens}, [None] * len(weights), {0: blocks}, axes)
    exported = torch.export.export(layer, args, dynamic_shapes=shapes, strict=False)
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "layer.pt2"))
    loader = AOTIModelPackageLoader(package, "model", True, 1, -1)

    def run(x, weights, cache, step):
        return loader.boxed_run([x, *weights, cache, *step])[0]

    expected = layer(x, weights, cache.clone(), step)
    assert torch.equal(run(x, weights, cache, step), expected)
    one = [step[0][:1], step[1][:2], step[2][:1], step[3][:1]]
    assert torch.equal(run(x[:1], weights, cache, one), layer(x[:1], weights, cache, one))
    assert replays_as_sequences_grow(run, layer, args)
