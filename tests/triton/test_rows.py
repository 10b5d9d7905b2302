"""Layer norm, embedding and the greedy choice of the GPU's kernels are torch's."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from benchmarks.kernels.triton_argmax import argmax
from benchmarks.kernels.triton_embedding import embed
from opt_trt.ops import ReferenceOps
from opt_trt.plugins.rows.triton_layer_norm import layer_norm
from tests.triton._problems import ROUNDED

DTYPES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 80, 1024, 1100])
def test_layer_norm_equals_the_reference(size, dtype, device):
    generator = torch.Generator().manual_seed(size)
    x = (3 + torch.randn(5, size, generator=generator)).to(dtype)
    weight, bias = torch.randn(2, size, generator=generator)
    expected = ReferenceOps().layer_norm(x.float(), weight, bias, 1e-5)
    found = layer_norm(x.to(device), weight.to(device), bias.to(device), 1e-5).cpu()
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() <= 1e-5 + ROUNDED[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 80, 1024, 1100])
def test_embedding_adds_token_and_position(size, dtype, device):
    generator = torch.Generator().manual_seed(size)
    vocab, position = torch.randn(50, size, generator=generator), torch.randn(20, size, generator=generator)
    vocab, position = vocab.to(dtype), position.to(dtype)
    ids, positions = torch.tensor([3, 49, 0, 3]), torch.tensor([0, 19, 2, 1])
    expected = ReferenceOps().embedding(ids, vocab) + ReferenceOps().embedding(positions, position)
    found = embed(ids.to(device), positions.to(device), vocab.to(device), position.to(device)).cpu()
    assert (found.float() - expected).abs().max() <= ROUNDED[dtype] * expected.abs().max()


@pytest.mark.parametrize("size", [1, 131, 4096, 10_000])
def test_argmax_is_torchs(size, device):
    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(size))
    assert argmax(logits.to(device)).tolist() == logits.argmax(1).tolist()


def test_the_first_of_equal_logits_wins(device):
    logits = torch.zeros(3, 9000)
    logits[0, [8999, 4096, 77]] = 1.0
    logits[1, [8999, 4100]] = 1.0
    assert argmax(logits.to(device)).tolist() == [77, 4100, 0]


def test_masked_logits_are_never_chosen(device):
    logits = torch.full((2, 5000), -torch.inf)
    logits[0, 4999] = -1e30
    assert argmax(logits.to(device)).tolist() == [4999, 0]
