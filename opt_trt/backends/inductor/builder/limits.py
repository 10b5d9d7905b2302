"""Fill in the limits of an embedded engine, and refuse flags that contradict each other or the checkpoint."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from opt_trt.backends.engine import Limits
from opt_trt.config.backend_answers import ANSWERS
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.flags import refuse_given
from opt_trt.errors import UserError, spelled
from opt_trt.model.config import ENGINE_ACTIVATION, ModelConfig
from opt_trt.plugins.cpu.isa import INT8_PRODUCTS, target_isa


@dataclass(frozen=True)
class ResolvedLimits:
    """A checkpoint's configuration and the engine's limits after defaults and checks."""

    model: ModelConfig
    build_config: Limits


def resolve_limits(model: ModelConfig, config: BuildConfig) -> ResolvedLimits:
    """Fill in the limits that depend on the checkpoint, and refuse what only TensorRT supports."""
    refuse_given(config, ANSWERS["inductor"])
    if model.hidden_act != ENGINE_ACTIVATION:
        raise UserError(
            f"{config.checkpoint_dir} has hidden_act {model.hidden_act!r}, and the embedded engine computes "
            f"{ENGINE_ACTIVATION} only; build this checkpoint with {spelled('backend')} tensorrt_llm"
        )
    if config.context_int8:
        _check_context_int8(model, config)
    max_seq_len = config.longest_sequence(model.max_position_embeddings)
    max_input_len = min(config.max_input_len, max_seq_len, config.max_num_tokens)
    if config.talks and config.max_input_len not in (max_input_len, BuildConfig.max_input_len):
        other = "max_num_tokens" if max_input_len == config.max_num_tokens else "max_seq_len"
        print(
            f"--max_input_len {config.max_input_len}: prompts have at most {max_input_len} tokens, by --{other}",
            file=sys.stderr,
        )
    limits = Limits(
        max_batch_size=config.max_batch_size,
        max_input_len=max_input_len,
        max_seq_len=max_seq_len,
        max_num_tokens=config.max_num_tokens,
        tokens_per_block=config.tokens_per_block,
        gather_context_logits=config.gather_context_logits or config.gather_all_token_logits,
        gather_generation_logits=config.gather_generation_logits or config.gather_all_token_logits,
        lm_head_precision=config.lm_head_precision,
        context_int8=config.context_int8,
        plugin_config={
            "gemm_plugin": config.gemm_plugin,
            "gpt_attention_plugin": config.gpt_attention_plugin,
            "context_fmha": config.context_fmha != "disable" and config.gpt_attention_plugin != "disable",
            "remove_input_padding": True,
            "paged_kv_cache": True,
        },
    )
    return ResolvedLimits(replace(model, logits_dtype=config.logits_dtype or model.logits_dtype), limits)


def _check_context_int8(model: ModelConfig, config: BuildConfig) -> None:
    """Raise `UserError` if no product could use activations of int8."""
    if INT8_PRODUCTS not in target_isa(config.target_isa).extras:
        isa = spelled("target_isa")
        raise UserError(
            f"{spelled('context_int8')} needs a processor with {INT8_PRODUCTS}, and no {isa} that leaves it out, found "
            f"{f'{isa} {config.target_isa}' if config.target_isa else 'one without'}; drop {spelled('context_int8')}"
        )
    if model.dtype == "float32" or (model.quant_algo is None and config.lm_head_precision is None):
        found = f"dtype {model.dtype}, weights {model.quant_algo or model.dtype}"
        raise UserError(
            f"{spelled('context_int8')} needs int8 or int4 weights in a model of float16 or bfloat16, found {found} in "
            f"{config.checkpoint_dir}; convert with {spelled('use_weight_only')}, or drop {spelled('context_int8')}"
        )
