"""Unit tests of `opt_trt/quant`."""
