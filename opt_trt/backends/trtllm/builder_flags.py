"""The flags by which each release of TensorRT-LLM's builder takes our settings: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opt_trt.backends.trtllm.release import NEWEST, OLDEST, Release
from opt_trt.config.build_flags import BuildConfig
from opt_trt.errors import UserError, spelled
from opt_trt.model.config import ModelConfig

FIRST_1_0 = Release(1, 0)
PAGED = {"enable": "paged", "disable": "continuous"}  # values of --paged_kv_cache → values of --kv_cache_type
WITHOUT_ATTENTION = {"kv_cache": "continuous", "context_fmha": "disable", "remove_input_padding": "disable"}
NEEDS_ATTENTION = {"kv_cache": "paged", "remove_input_padding": "enable", "use_paged_context_fmha": "enable"}
FLAGS = {"kv_cache": "kv_cache_type"}  # settings whose flag has another name
ADVICE = {  # what to do if a release lacks a flag
    "context_fmha_fp32_acc": (
        f"the engine is the same, give {spelled('enable_context_fmha_fp32_acc')} to run.py or summarize.py"
    ),
    "lookup_plugin": "embedding lookup needs no plugin any more, drop the flag",
}


@dataclass(frozen=True)
class Word:
    """The flag of a setting in releases `since` to `until`; `says` maps values, to None if they lack it."""

    setting: str
    flag: str
    since: Release = OLDEST
    until: Release = NEWEST
    says: Callable[[str], str | None] = str


# In the order in which the builder is given them.
WORDS = (
    Word("checkpoint_dir", "checkpoint_dir"),
    Word("output_dir", "output_dir"),
    Word("max_batch_size", "max_batch_size"),
    Word("max_input_len", "max_input_len"),
    Word("max_output_len", "max_output_len", until=Release(0, 10)),
    Word("max_seq_len", "max_seq_len", since=Release(0, 11)),
    Word("max_beam_width", "max_beam_width"),
    Word("max_num_tokens", "max_num_tokens"),
    Word("opt_num_tokens", "opt_num_tokens"),
    Word("tokens_per_block", "tokens_per_block"),
    Word("gemm_plugin", "gemm_plugin"),
    Word("gpt_attention_plugin", "gpt_attention_plugin"),
    Word("context_fmha", "context_fmha"),
    Word("context_fmha_fp32_acc", "context_fmha_fp32_acc", until=Release(0, 11)),
    Word("lookup_plugin", "lookup_plugin", until=Release(0, 11)),
    Word("kv_cache", "paged_kv_cache", until=Release(0, 21), says={v: k for k, v in PAGED.items()}.get),
    Word("kv_cache", "kv_cache_type", since=FIRST_1_0),
    Word("remove_input_padding", "remove_input_padding"),
    Word("use_paged_context_fmha", "use_paged_context_fmha"),
    Word("multiple_profiles", "multiple_profiles"),
    Word("logits_dtype", "logits_dtype"),
    Word("gather_context_logits", "gather_context_logits"),
    Word("gather_generation_logits", "gather_generation_logits"),
    Word("strip_plan", "strip_plan", since=Release(0, 11)),
    Word("weight_sparsity", "weight_sparsity"),
    Word("weight_streaming", "weight_streaming", since=Release(0, 11)),
    Word("fast_build", "fast_build", since=Release(0, 12)),
    Word("enable_debug_output", "enable_debug_output"),
    Word("visualize_network", "visualize_network", since=FIRST_1_0),
    Word("monitor_memory", "monitor_memory", since=FIRST_1_0),
    Word("profiling_verbosity", "profiling_verbosity"),
    Word("input_timing_cache", "input_timing_cache"),
    Word("output_timing_cache", "output_timing_cache"),
    Word("workers", "workers"),
    Word("log_level", "log_level"),
)


def builder_flags(config: BuildConfig, model: ModelConfig, release: Release) -> list[str]:
    """Return the builder's arguments; `UserError` names a flag that the release lacks."""
    argv = []
    for name, value in settings(config, model, release).items():
        if value is None or value is False:
            continue
        word = next((w for w in WORDS if w.setting == name and w.since <= release <= w.until), None)
        said = word.says(str(value)) if word is not None else None
        if word is None or said is None:
            raise UserError(_no_word(name, value, release))
        argv += [f"--{word.flag}"] if value is True else [f"--{word.flag}", said]
    return argv


def settings(config: BuildConfig, model: ModelConfig, release: Release) -> dict[str, Any]:
    """Return all settings of a build; None and False are not passed on. Limits are always set, so no defaults act."""
    values = {word.setting: getattr(config, word.setting, None) for word in WORDS}
    max_seq_len = config.longest_sequence(model.max_position_embeddings)
    values |= {
        "max_seq_len": max_seq_len,
        "max_output_len": None,
        "max_input_len": min(config.max_input_len, max_seq_len),
        "gather_context_logits": config.gather_context_logits or config.gather_all_token_logits,
        "gather_generation_logits": config.gather_generation_logits or config.gather_all_token_logits,
        "kv_cache": _kv_cache(config),
    }
    if release == OLDEST:
        values |= _older(values, max_seq_len, model.dtype)
    if config.gpt_attention_plugin == "disable":
        values |= _without_attention(values)
    return values


def _without_attention(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings that switch off what needs the attention plugin; `UserError` if one of them was requested."""
    for name, needy in NEEDS_ATTENTION.items():
        if values[name] == needy:
            raise UserError(
                f"{spelled(FLAGS.get(name, name))} {needy} needs the attention plugin, "
                f"found {spelled('gpt_attention_plugin')} disable; drop one of the two"
            )
    return {name: values[name] or without for name, without in WITHOUT_ATTENTION.items()}


def _older(values: dict[str, Any], max_seq_len: int, dtype: str) -> dict[str, Any]:
    """Return the settings that 0.10 has in another form: the length of outputs, not the sum, and no `auto` types."""
    max_input_len = min(values["max_input_len"], max_seq_len - 1)
    lengths = {"max_seq_len": None, "max_input_len": max_input_len, "max_output_len": max_seq_len - max_input_len}
    return lengths | {name: dtype for name, value in values.items() if value == "auto"}


def _kv_cache(config: BuildConfig) -> str | None:
    """Return the kind of KV cache from its two flags, which must agree."""
    paged = PAGED[config.paged_kv_cache] if config.paged_kv_cache is not None else None
    if None not in (paged, config.kv_cache_type) and paged != config.kv_cache_type:
        raise UserError(
            f"{spelled('paged_kv_cache')} {config.paged_kv_cache} is {spelled('kv_cache_type')} {paged}, "
            f"found {config.kv_cache_type}; drop one of the two"
        )
    return config.kv_cache_type or paged


def _no_word(name: str, value: Any, release: Release) -> str:
    given = spelled(FLAGS.get(name, name))
    shown = given if value is True else f"{given} {value}"
    words = [w for w in WORDS if w.setting == name and w.says(str(value)) is not None]
    advice = ADVICE.get(name, "drop the flag, or install another release")
    return f"{shown}: builders of TensorRT-LLM {words[0].since} to {words[-1].until} take it, not {release}'s; {advice}"
