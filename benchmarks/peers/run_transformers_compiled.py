"""transformers with a static KV cache, its forward pass compiled by `torch.compile` (one program a shape)."""

from __future__ import annotations

import torch
from run_transformers import load, opened
from worker import Opened, run

LONGEST = 2048  # one cache for all lengths, or each would be compiled anew


def open_model(model: str, dtype: str) -> Opened:
    """Compiled on the first call of each shape, which its logits and the warming round pay."""
    torch._dynamo.config.recompile_limit = 64
    loaded = load(model, dtype)
    loaded.forward = torch.compile(loaded.forward, dynamic=False)
    return opened(loaded, dtype, cache_implementation="static")


if __name__ == "__main__":
    run(open_model)
