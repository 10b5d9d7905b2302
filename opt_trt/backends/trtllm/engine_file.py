"""A TensorRT engine's `config.json`: the model it holds and the limits it was built with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opt_trt.errors import UserError
from opt_trt.host.json_file import read_json
from opt_trt.model.config import ModelConfig
from opt_trt.step import DecoderSpec

LIMITS = ("max_batch_size", "max_input_len", "max_num_tokens", "max_beam_width")
SWITCHES = ("gather_context_logits", "gather_generation_logits")
OPTIONAL = {"max_seq_len": int, "plugin_config": dict}  # may be null or absent
DEFAULT_BLOCK = 32  # the default of `tokens_per_block`


@dataclass(frozen=True)
class TrtEngine:
    """The facts that a session needs about an engine before it runs."""

    directory: Path
    version: str  # the version of TensorRT-LLM that built it
    spec: DecoderSpec
    max_beam_width: int
    world_size: int


def read_engine(directory: Path) -> TrtEngine:
    """Read an engine's `config.json`; `UserError` for another architecture and for keys it lacks."""
    path = directory / "config.json"
    values = read_json(path)
    pretrained, limits = values["pretrained_config"], values["build_config"]
    if pretrained.get("architecture") != "OPTForCausalLM":
        raise UserError(f"{path} is of {pretrained.get('architecture')!r}, expected 'OPTForCausalLM'; build an OPT")
    wrong = [key for key in LIMITS if type(limits.get(key)) is not int]
    wrong += [key for key in SWITCHES if type(limits.get(key, False)) is not bool]
    wrong += [key for key, kind in OPTIONAL.items() if not isinstance(limits.get(key), kind | None)]
    if wrong:
        raise UserError(f"{path}: build_config has no usable {', '.join(wrong)}; build the engine again")
    model = ModelConfig.from_dict(pretrained, path)
    return TrtEngine(
        directory, str(values["version"]), _spec(model, limits), limits["max_beam_width"], model.mapping.world_size
    )


def _spec(model: ModelConfig, limits: dict[str, Any]) -> DecoderSpec:
    plugins = limits.get("plugin_config") or {}
    return DecoderSpec(
        num_layers=model.num_hidden_layers,
        num_heads=model.local_heads,
        head_size=model.head_size,
        vocab_size=model.vocab_size,
        kv_dtype=getattr(torch, model.dtype),
        tokens_per_block=plugins.get("tokens_per_block") or DEFAULT_BLOCK,
        max_batch_size=limits["max_batch_size"],
        max_input_len=limits["max_input_len"],
        max_seq_len=limits.get("max_seq_len") or model.max_position_embeddings,
        max_num_tokens=limits["max_num_tokens"],
        gather_context_logits=limits.get("gather_context_logits", False),
        gather_generation_logits=limits.get("gather_generation_logits", False),
        end_id=model.eos_token_id,
        pad_id=model.pad_token_id,
        end_token_ids=model.end_token_ids,
    )
