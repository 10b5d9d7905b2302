"""The TensorRT backend: engines built by an installed TensorRT-LLM, for NVIDIA's GPUs."""

from __future__ import annotations

from opt_trt.backends.trtllm.build import build
from opt_trt.backends.trtllm.release import machine, missing

__all__ = ["build", "machine", "missing"]
