"""W4A16: weights in 4 bits, 16 steps a channel."""

from __future__ import annotations

from functools import partial

from opt_trt.quant.mode import QuantMode
from opt_trt.quant.symmetric import dequantize, quantize

INT4 = QuantMode("int4", "W4A16", 4, partial(quantize, bits=4), dequantize)
