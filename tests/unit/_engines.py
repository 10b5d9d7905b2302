"""The files of an engine that are read before it is opened."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from opt_trt.backends.engine import EngineConfig, Limits
from opt_trt.model.config import ModelConfig

MODEL = {
    "architecture": "OPTForCausalLM", "dtype": "float32", "num_hidden_layers": 2, "num_attention_heads": 2,
    "hidden_size": 8, "vocab_size": 16, "max_position_embeddings": 16, "do_layer_norm_before": True,
}  # fmt: skip


def write_engine_config(directory: Path) -> EngineConfig:
    """Write the `config.json` of an engine of one rank, and nothing else."""
    values: dict[str, Any] = {
        "pretrained_config": ModelConfig.from_dict(MODEL, "here"),
        "build_config": Limits(8, 8, 16, 16, 4, False, False),
        "backend": "inductor",
        "device": {},
        "tactics": {},
    }
    config = EngineConfig(
        **{f.name: values.get(f.name, {} if f.name in ("files", "samples") else "") for f in fields(EngineConfig)}
    )
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    return config
