"""Unit tests of `opt_trt/graph`."""
