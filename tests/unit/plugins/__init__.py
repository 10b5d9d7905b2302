"""Unit tests of `opt_trt/plugins`."""
