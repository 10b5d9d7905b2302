"""Compile a TensorRT-LLM checkpoint of OPT into an engine."""

from opt_trt.commands import build

if __name__ == "__main__":
    build()
