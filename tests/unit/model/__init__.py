"""Unit tests of `opt_trt/model`."""
