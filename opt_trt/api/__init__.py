"""The Python API: `LLM` and what it takes and returns, with vLLM's and TensorRT-LLM's names."""

import os

from opt_trt.runtime.world import current_world
from opt_trt.runtime.world.cores import SPIN_COUNT, share_cores

# As the commands do; both act unless torch is loaded already.
os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
share_cores(current_world(os.environ), os.environ)
