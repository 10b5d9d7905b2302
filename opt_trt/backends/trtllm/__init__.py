"""The TensorRT backend: engines built by an installed TensorRT-LLM, for NVIDIA's GPUs."""

from __future__ import annotations

from opt_trt.backends.trtllm.build import build
from opt_trt.backends.trtllm.release import missing

__all__ = ["build", "missing"]
