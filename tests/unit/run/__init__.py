"""Unit tests of `opt_trt/run`."""
