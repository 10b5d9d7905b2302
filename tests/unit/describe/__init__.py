"""Unit tests of `opt_trt/describe`."""
