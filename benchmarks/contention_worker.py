"""One side of `contention.py`, in a process of its own that runs `serve`."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], None]
INPUT_LEN, FIRST_ID = 32, 10
CACHE_TOKENS = 2**14


def open_engine(engine_dir: str) -> tuple[Generate, int]:
    """Return what generates with an engine of ours, and the size of its vocabulary."""
    import opt_trt.api  # noqa: F401  # sets what must be set before torch loads
    from opt_trt import backends
    from opt_trt.runtime.in_flight import generate
    from opt_trt.runtime.request import Request
    from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit

    session = backends.open_engine(Path(engine_dir), KvCacheLimit(max_tokens=CACHE_TOKENS))

    def run(prompts: Prompts, output_len: int) -> None:
        results = generate(session, [Request(tuple(row), output_len) for row in prompts])
        assert all(len(result.output_ids) == output_len for result in results)

    return run, session.spec.vocab_size


def open_transformers(model_dir: str) -> tuple[Generate, int]:
    """Return what generates with transformers in float16, and the size of its vocabulary."""
    import torch
    from transformers import OPTForCausalLM

    model = OPTForCausalLM.from_pretrained(model_dir, dtype=torch.float16).eval()

    def run(prompts: Prompts, output_len: int) -> None:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=output_len, do_sample=False,
                eos_token_id=None, pad_token_id=1,
            )  # fmt: skip

    return run, model.config.vocab_size


OPENERS = {"engine": open_engine, "transformers": open_transformers}


def serve(kind: str, path: str, threads: str = "") -> None:
    """Answer each line `BATCH_SIZE OUTPUT_LEN SEED` with tokens/s until the input ends; `kind` is a key of OPENERS."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = threads
    run, vocab_size = OPENERS[kind](path)
    for line in sys.stdin:
        batch_size, output_len, seed = map(int, line.split())
        chance = random.Random(seed)
        prompts = [chance.choices(range(FIRST_ID, vocab_size), k=INPUT_LEN) for _ in range(batch_size)]
        started = time.perf_counter()
        run(prompts, output_len)
        print(batch_size * output_len / (time.perf_counter() - started), flush=True)
