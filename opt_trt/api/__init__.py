"""The Python API: engines as `LLM`s, with the names vLLM's and TensorRT-LLM's users know."""

import os

from opt_trt.cli import SPIN_COUNT

os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # as the commands do; it acts unless torch is loaded already
