"""Unit tests of `opt_trt/text`."""
