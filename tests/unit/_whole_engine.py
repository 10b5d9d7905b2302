"""An engine directory whose programs cannot run: what is checked before they are loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from opt_trt.backends.checksums import checksums_of, samples_of
from opt_trt.backends.engine import CONFIG, PROGRAMS, WEIGHTS, EngineConfig, Limits, rank_metadata
from opt_trt.checkpoint.writer import TensorSpec, write_rank
from opt_trt.model.config import ModelConfig

MODEL = ModelConfig(
    architecture="OPTForCausalLM", do_layer_norm_before=True, dtype="float32", vocab_size=8, hidden_size=8,
    num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16,
)  # fmt: skip
WEIGHT = TensorSpec((4, 8), torch.float32)


def write_engine(directory: Path, **changes: object) -> EngineConfig:
    """Write a whole engine of one rank, with two weights of one shape."""
    directory.mkdir(exist_ok=True)
    config = EngineConfig(
        MODEL, Limits(2, 8, 16, 64, 32, False, False), "inductor", {"type": "cpu"}, "opt_trt_0.so", {}, "0" * 16
    )
    (directory / PROGRAMS.format(rank=0)).write_bytes(b"programs" * 500)
    (directory / config.plugin_library).write_bytes(b"library" * 500)
    weights = {"first": torch.zeros(4, 8), "second": torch.ones(4, 8)}
    write_rank(
        directory / WEIGHTS.format(rank=0), dict.fromkeys(weights, WEIGHT), weights.items(), rank_metadata(config, 0)
    )
    config = replace(config, files=checksums_of(directory), samples=samples_of(directory))
    config = replace(config, **changes)  # type: ignore[arg-type]
    (directory / CONFIG).write_text(json.dumps(config.to_dict()))
    return config
