"""W8A16: weights of 8 bits, which is 256 steps for each output channel."""

from __future__ import annotations

from functools import partial

from opt_trt.quant.mode import QuantMode
from opt_trt.quant.symmetric import dequantize, quantize

INT8 = QuantMode("int8", "W8A16", 8, partial(quantize, bits=8), dequantize)
