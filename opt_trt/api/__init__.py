"""The Python API: `LLM` and what it takes and returns, with vLLM's and TensorRT-LLM's names."""

import os

from opt_trt.runtime.world import current_world
from opt_trt.runtime.world.cores import share_cores

# As the commands do; it has no effect if torch is loaded already.
share_cores(current_world(os.environ), os.environ)
