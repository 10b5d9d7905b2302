"""W4A16: weights of 4 bits, which is 16 steps for each output channel."""

from __future__ import annotations

from functools import partial

from opt_trt.quant.mode import QuantMode
from opt_trt.quant.symmetric import dequantize, quantize

INT4 = QuantMode("int4", "W4A16", 4, partial(quantize, bits=4), dequantize)
