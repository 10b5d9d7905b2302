"""Unit tests of `opt_trt/config`."""
