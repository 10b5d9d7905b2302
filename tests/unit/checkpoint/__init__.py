"""Unit tests of `opt_trt/checkpoint`."""
