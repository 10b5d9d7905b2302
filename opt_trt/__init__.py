"""OPT from checkpoint to measured text, with TensorRT-LLM's commands, flags and checkpoint format."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from opt_trt.version import __version__

if TYPE_CHECKING:
    from opt_trt.api.llm import LLM
    from opt_trt.api.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
    from opt_trt.api.pending import PendingOutput
    from opt_trt.api.sampling_params import SamplingParams
    from opt_trt.config.llm_options import LlmOptions
    from opt_trt.errors import UserError

__all__ = [
    "LLM", "CompletionOutput", "LlmOptions", "Logprob", "PendingOutput", "RequestMetrics", "RequestOutput",
    "SamplingParams", "UserError", "__version__",
]  # fmt: skip

# Where the Python API is; imported once it is used, because torch takes seconds to load.
HOMES = {
    "LLM": "opt_trt.api.llm",
    "CompletionOutput": "opt_trt.api.outputs",
    "Logprob": "opt_trt.api.outputs",
    "LlmOptions": "opt_trt.config.llm_options",
    "PendingOutput": "opt_trt.api.pending",
    "RequestMetrics": "opt_trt.api.outputs",
    "RequestOutput": "opt_trt.api.outputs",
    "SamplingParams": "opt_trt.api.sampling_params",
    "UserError": "opt_trt.errors",
}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
