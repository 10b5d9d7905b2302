"""Unit tests of `opt_trt/api`."""
