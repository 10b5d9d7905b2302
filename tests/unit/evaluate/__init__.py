"""Unit tests of `opt_trt/evaluate`."""
