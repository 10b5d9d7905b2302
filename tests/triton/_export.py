"""Export a layer on a GPU's tactics where there is no GPU: `python -m tests.triton._export` prints its operations.

A process of its own: kernels that are interpreted become no part of a program.
"""

from __future__ import annotations

import json

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.gemm import cuda as gemm
from tests.triton._layers import HEADS, HIDDEN, layer_pair


def inputs(pair):
    """A step of three sequences on a GPU, in name only."""

    def fake(*shape, dtype=torch.float16):
        return torch.empty(shape, dtype=dtype, device="cuda")

    weights = [fake(*w.shape, dtype=w.dtype) for w in pair.stored]
    step = [fake(3, dtype=torch.int64), *(fake(*s, dtype=torch.int32) for s in ((4,), (3,), (3, 2)))]
    return fake(3, HIDDEN), weights, fake(7, 2, HEADS, 32, HIDDEN // HEADS), step


def main() -> None:
    pair = layer_pair("float16", "int8")
    layer = pair.on_gpu(4, gemm.SPLIT[1], attention.SPLIT_KEYS[1])
    tokens, blocks, width = (Dim(name, min=1) for name in ("tokens", "blocks", "width"))
    axes = [{0: tokens}, {0: tokens + 1}, {0: tokens}, {0: tokens, 1: width}]
    with FakeTensorMode(allow_non_fake_inputs=True):
        args = inputs(pair)
        exported = torch.export.export(
            layer, args, dynamic_shapes=({0: tokens}, [None] * len(args[1]), {0: blocks}, axes), strict=False
        )
    print(json.dumps([str(node.target) for node in exported.graph.nodes if node.op == "call_function"]))


if __name__ == "__main__":
    main()
