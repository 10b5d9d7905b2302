"""Fixtures of tests that need a GPU. The tests of the kernels, in tests/triton, use a GPU only if there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

VOCAB, POSITIONS = 1003, 256


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why these tests cannot run, instead of failing each."""
    if not torch.cuda.is_available():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """Return a model of two layers with 125M's sizes."""
    config = OPTConfig(
        vocab_size=VOCAB, num_hidden_layers=2, hidden_size=768, word_embed_proj_dim=768, ffn_dim=3072,
        num_attention_heads=12, max_position_embeddings=POSITIONS, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(3)
    model = OPTForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.06)
    model.save_pretrained(directory := tmp_path_factory.mktemp("model"))
    return directory
