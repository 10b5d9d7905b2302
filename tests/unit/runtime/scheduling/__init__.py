"""Unit tests of `opt_trt/runtime/scheduling`."""
