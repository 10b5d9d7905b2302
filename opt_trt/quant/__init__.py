"""The table of weight-only quantization modes; each mode has a file of its own."""

from __future__ import annotations

from opt_trt.quant.int4 import INT4
from opt_trt.quant.int8 import INT8
from opt_trt.quant.mode import QuantMode

MODES: dict[str, QuantMode] = {mode.name: mode for mode in (INT8, INT4)}
ALGORITHMS: dict[str, QuantMode] = {mode.quant_algo: mode for mode in MODES.values()}  # by TensorRT-LLM's name
