"""The options of `LLM` beside the model: how to build an engine of it, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from opt_trt.config.build_flags import DEVICES
from opt_trt.config.convert_flags import PRECISIONS
from opt_trt.config.field_types import check_field_types, shown
from opt_trt.config.llm_names import LLM_NAMES, RANKS, plain_dtype
from opt_trt.config.other_names import understood
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.model.config import DTYPES

AUTO = "auto"  # the type of the model's own weights, if it has 16 bits
CHOICES: dict[str, tuple[str | None, ...]] = {
    "dtype": (None, AUTO, *DTYPES),
    "quantization": (None, *PRECISIONS),
    "device": (None, *DEVICES),
}
UNSET = {"seed": 0, "tensor_parallel_size": 1}  # for which others say None
CONVERTING = ("dtype", "quantization")
BUILDING = ("device", "max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "gather_context_logits")
COUNTS = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "context_chunk_size")


@dataclass(frozen=True)
class LlmOptions:
    """Options of `LLM`; None leaves a choice to the converter and the builder, or to an engine that exists already."""

    tokenizer: str | None = None  # directory; default: the model's
    dtype: str | None = None  # type the weights are stored in; default: float16; "auto": the model's, if it has 16 bits
    quantization: str | None = None  # weight-only mode of the linears
    device: str | None = None  # "cpu" or "cuda"; default: cuda where torch sees one
    max_batch_size: int | None = None  # sequences in one step; further ones wait
    max_input_len: int | None = None  # longest prompt in tokens; default: what max_seq_len and max_num_tokens allow
    max_seq_len: int | None = None  # prompt plus output in tokens; default: the position table
    max_num_tokens: int | None = None  # packed tokens in one step
    gather_context_logits: bool | None = None  # the engine can tell `prompt_logprobs`
    max_tokens_in_paged_kv_cache: int | None = None
    kv_cache_free_gpu_memory_fraction: float = 0.9  # share of free memory the KV cache may take
    kv_cache_enable_block_reuse: bool = False  # keep blocks of the KV cache for prompts that begin alike
    scheduler_policy: str = Scheduling.policy  # or "max_utilization": start over the newest when the cache is full
    context_chunk_size: int | None = None  # most prompt tokens in a step in which others generate
    tensor_parallel_size: int = 1  # must be 1: engines of several ranks are built by commands
    seed: int = 0  # seed of the seeds of requests that have none

    def __post_init__(self) -> None:
        check_field_types(self)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(repr(choice) for choice in allowed[1:])
                raise UserError(f"{name} must be {known} or None, found {shown(getattr(self, name))}")
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, found {value!r}")
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, found {self.seed}")
        if self.tensor_parallel_size != 1:
            raise UserError(f"LLM has no tensor_parallel_size={self.tensor_parallel_size}: {RANKS}")
        self.scheduling()

    def scheduling(self) -> Scheduling:
        """Return how requests share the session."""
        return Scheduling(self.scheduler_policy, self.context_chunk_size, self.kv_cache_enable_block_reuse)

    def given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return those of the named options that were given."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def llm_options(given: Mapping[str, Any]) -> LlmOptions:
    """Return the options that keyword arguments give, by any name; `UserError` names what cannot be done."""
    options = understood(given, [f.name for f in fields(LlmOptions)], LLM_NAMES, "LLM")
    if "dtype" in options:
        options["dtype"] = plain_dtype(options["dtype"])
    for name, absent in UNSET.items():
        if name in options and options[name] is None:
            options[name] = absent
    return LlmOptions(**options)
