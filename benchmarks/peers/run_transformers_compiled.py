"""transformers with a static KV cache and a forward pass compiled by `torch.compile`, one program per shape."""

from __future__ import annotations

import torch
from run_transformers import load, opened
from worker import LoadedModel, run

LONGEST = 2048  # one cache for all lengths, because each length would be compiled again


def open_model(model: str, dtype: str) -> LoadedModel:
    """Open the model; the first call of each shape compiles it, before the measured rounds."""
    torch._dynamo.config.recompile_limit = 64
    loaded = load(model, dtype)
    loaded.forward = torch.compile(loaded.forward, dynamic=False)
    return opened(loaded, dtype, cache_implementation="static")


if __name__ == "__main__":
    run(open_model)
