"""Tests of the TensorRT backend with a stand-in for `tensorrt_llm`."""
