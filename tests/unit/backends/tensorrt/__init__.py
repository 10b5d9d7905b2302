"""Unit tests of `opt_trt/backends/tensorrt`."""
