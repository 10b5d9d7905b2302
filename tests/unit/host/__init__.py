"""Unit tests of `opt_trt/host`."""
