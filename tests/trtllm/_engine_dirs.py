"""Engine directories as `trtllm-build` writes them: a `config.json` of three keys; nothing here runs the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PRETRAINED = {
    "architecture": "OPTForCausalLM", "dtype": "float16", "num_hidden_layers": 2, "num_attention_heads": 4,
    "hidden_size": 64, "intermediate_size": 256, "vocab_size": 50, "max_position_embeddings": 64,
    "do_layer_norm_before": True, "position_embedding_type": "learned_absolute", "hidden_act": "relu",
    "logits_dtype": "float32", "norm_epsilon": 1e-5, "head_size": 16, "num_key_value_heads": 4, "qk_layernorm": False,
    "use_parallel_embedding": False, "embedding_sharding_dim": 0, "runtime_defaults": None,
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128},
    "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1, "gpus_per_node": 8},
}  # fmt: skip
PLUGINS = {
    "gpt_attention_plugin": "float16", "gemm_plugin": None, "remove_input_padding": True, "paged_kv_cache": True,
    "context_fmha": True, "tokens_per_block": 32,
}  # fmt: skip
BUILD = {
    "max_batch_size": 4, "max_input_len": 32, "max_seq_len": 48, "max_num_tokens": 128, "max_beam_width": 3,
    "kv_cache_type": "PAGED", "gather_context_logits": False, "gather_generation_logits": False,
}  # fmt: skip


def write_engine(directory: Path, world_size: int = 1, plugins: dict[str, Any] | None = None, **build: Any) -> Path:
    """Write a directory with the configuration of a TensorRT engine, with changes; return it."""
    directory.mkdir(parents=True, exist_ok=True)
    mapping = {"mapping": {"world_size": world_size, "tp_size": world_size, "pp_size": 1}}
    values = {
        "version": "1.2.1",
        "pretrained_config": PRETRAINED | mapping,
        "build_config": BUILD | build | {"plugin_config": PLUGINS | (plugins or {})},
    }
    (directory / "config.json").write_text(json.dumps(values))
    return directory
