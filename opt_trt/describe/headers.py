"""The header of a model, an engine or a source: labels and texts about the whole of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opt_trt.backends.engine import EngineConfig
from opt_trt.model.config import ModelConfig
from opt_trt.quant import ALGORITHMS
from opt_trt.sources.opt import OptConfig

EMBEDDINGS = {0: "sharded by vocabulary", 1: "sharded by hidden features"}  # by embedding_sharding_dim


def model_header(config: ModelConfig) -> dict[str, str]:
    """Return the header of a checkpoint."""
    mapping = config.mapping
    parallel = EMBEDDINGS[config.embedding_sharding_dim] if config.use_parallel_embedding else "whole on every rank"
    return {
        "architecture": f"{config.architecture}, {_norms(config)}",
        "dtype": config.dtype,
        "quantization": _quantization(config),
        "ranks": f"{mapping.world_size} (tp {mapping.tp_size} x pp {mapping.pp_size})",
        "layers": f"{config.num_hidden_layers}, {config.num_attention_heads} heads of {config.head_size}",
        "sizes": f"hidden {config.hidden_size}, ffn {config.intermediate_size}, vocabulary {config.vocab_size}, "
        f"{config.max_position_embeddings} positions",
        "embedding": parallel,
        "token ids": _tokens(config),
    }


def engine_header(engine: EngineConfig) -> dict[str, str]:
    """Return the header of an engine: its model, its device, its limits and its tactics."""
    limits, device = engine.build_config, engine.device
    target = " ".join(filter(None, (device.get(name) for name in ("type", "isa", "gpu", "capabilities"))))
    compiler = f"{device['library']} {device.get('version')}" if "library" in device else f"torch {device.get('torch')}"
    return model_header(engine.pretrained_config) | {
        "built": f"opt_trt {engine.version}, backend {engine.backend} for {target}, {compiler}",
        "head": limits.lm_head_precision or engine.pretrained_config.dtype,
        "limits": f"batch {limits.max_batch_size}, input {limits.max_input_len}, sequence {limits.max_seq_len}, "
        f"{limits.max_num_tokens} packed tokens, KV cache blocks of {limits.tokens_per_block}",
        "tactics": "; ".join(f"{site}: {', '.join(dict.fromkeys(names))}" for site, names in engine.tactics.items())
        or "those of TensorRT",
    }


def tensorrt_header(config: dict[str, Any], path: Path) -> dict[str, str]:
    """Return the header of a TensorRT engine, whose `config.json` is TensorRT-LLM's own."""
    limits = config["build_config"]
    sizes = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "max_beam_width")
    return model_header(ModelConfig.from_dict(config["pretrained_config"], path)) | {
        "built": f"TensorRT-LLM {config['version']}",
        "limits": ", ".join(f"{name} {limits[name]}" for name in sizes if limits.get(name) is not None),
        "weights": "inside rank*.engine, which TensorRT alone reads",
    }


def source_header(config: OptConfig) -> dict[str, str]:
    """Return the header of an original model."""
    projected = f", embeddings {config.word_embed_proj_dim} wide with projections" if config.has_projections else ""
    return {
        "architecture": f"OPTForCausalLM, {_norms(config)}",
        "head": "tied to the embedding" if config.tie_word_embeddings else "a table of its own",
        "layers": f"{config.num_hidden_layers}, {config.num_attention_heads} heads of "
        f"{config.hidden_size // config.num_attention_heads}",
        "sizes": f"hidden {config.hidden_size}, ffn {config.ffn_dim}, vocabulary {config.vocab_size}, "
        f"{config.max_position_embeddings} positions{projected}",
        "token ids": _tokens(config),
    }


def _norms(config: ModelConfig | OptConfig) -> str:
    order = "pre-norm" if config.do_layer_norm_before else "post-norm"
    return order + ", without a final layer norm" * config.remove_final_layer_norm


def _tokens(config: ModelConfig | OptConfig) -> str:
    ends = (config.eos_token_id,) if config.end_token_ids is None else config.end_token_ids
    return f"bos {config.bos_token_id}, eos {' '.join(map(str, ends)) or 'none'}, pad {config.pad_token_id}"


def _quantization(config: ModelConfig) -> str:
    if config.quant_algo is None:
        return "none"
    mode = f"{config.quant_algo} ({ALGORITHMS[config.quant_algo].name} weights)"
    gpu = "a GPU it does not name" if config.target_sm is None else f"SM {config.target_sm}"
    return f"{mode}, deferred to the build" if config.defer_quantization else f"{mode}, packed for {gpu}"
