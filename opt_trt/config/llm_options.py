"""The options of `LLM` beside the model: how to build an engine of it, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from opt_trt.config.convert_flags import PRECISIONS
from opt_trt.config.scheduling import Scheduling
from opt_trt.config.suggestions import did_you_mean
from opt_trt.errors import UserError
from opt_trt.model.config import DTYPES

CHOICES: dict[str, tuple[str | None, ...]] = {"dtype": (None, *DTYPES), "quantization": (None, *PRECISIONS)}
CONVERTING = ("dtype", "quantization")
BUILDING = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
RENAMED = {  # vLLM's names, and TensorRT-LLM's names, which are used here
    "max_model_len": "max_seq_len",
    "max_num_seqs": "max_batch_size",
    "max_num_batched_tokens": "max_num_tokens",
    "gpu_memory_utilization": "kv_cache_free_gpu_memory_fraction",
    "enable_prefix_caching": "kv_cache_enable_block_reuse",
}


@dataclass(frozen=True)
class LlmOptions:
    """Options of `LLM`; None leaves a choice to the converter and the builder, or to an engine that exists already."""

    tokenizer: str | None = None  # directory; default: the model's
    dtype: str | None = None  # type the weights are stored in; default: float16
    quantization: str | None = None  # weight-only mode of the linears
    max_batch_size: int | None = None  # sequences in one step; further ones wait
    max_input_len: int | None = None  # longest prompt in tokens; default: what max_seq_len and max_num_tokens allow
    max_seq_len: int | None = None  # prompt plus output in tokens; default: the position table
    max_num_tokens: int | None = None  # packed tokens in one step
    max_tokens_in_paged_kv_cache: int | None = None
    kv_cache_free_gpu_memory_fraction: float = 0.9  # share of free memory the KV cache may take
    kv_cache_enable_block_reuse: bool = False  # keep blocks of the KV cache for prompts that begin alike
    scheduler_policy: str = Scheduling.policy  # or "max_utilization": start over the newest when the cache is full
    context_chunk_size: int | None = None  # most prompt tokens in a step in which others generate
    tensor_parallel_size: int = 1  # must be 1: engines of several ranks are built by commands
    seed: int = 0  # seed of the seeds of requests that have none

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(repr(choice) for choice in allowed[1:])
                raise UserError(f"{name} must be {known} or None, found {getattr(self, name)!r}")
        for name in (*BUILDING, "context_chunk_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UserError(f"{name} must be at least 1, found {value!r}")
        if self.tensor_parallel_size != 1:
            raise UserError(
                f"tensor_parallel_size {self.tensor_parallel_size} is not supported: engines have one rank; give 1"
            )
        self.scheduling()

    def scheduling(self) -> Scheduling:
        """Return how requests share the session."""
        return Scheduling(self.scheduler_policy, self.context_chunk_size, self.kv_cache_enable_block_reuse)

    def given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return those of the named options that were given."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def llm_options(given: Mapping[str, Any]) -> LlmOptions:
    """Return the options that keyword arguments give; a `UserError` names an unknown one."""
    known = [f.name for f in fields(LlmOptions)]
    for name in given:
        if name not in known:
            hint = f"it is called {RENAMED[name]} here" if name in RENAMED else did_you_mean(name, known)
            hint = hint or f"known are {', '.join(known)}"
            raise UserError(f"LLM has no option {name}; {hint}")
    return LlmOptions(**given)
