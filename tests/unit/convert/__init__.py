"""Unit tests of `opt_trt/convert`."""
