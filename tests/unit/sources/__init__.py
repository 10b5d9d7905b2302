"""Unit tests of `opt_trt/sources`."""
