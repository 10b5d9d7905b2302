"""The program of each rank of `test_ranks`: generate from token ids; rank 0 writes the outputs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from opt_trt.backends import follow_leader, open_engine
from opt_trt.config.sampling import GREEDY
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.world import current_world

PROMPTS = [[(7 * i + n) % 1000 + 3 for i in range(n)] for n in (1, 5, 64, 65, 130)]
NEW_TOKENS = 6
LIMIT = KvCacheLimit(max_tokens=2048)


def main(engine: Path, out: Path) -> None:
    world = current_world(os.environ)
    if not world.is_leader:
        follow_leader(world)
        return
    session = open_engine(engine, LIMIT)
    wanted = {"return_generation_logits": True}
    whole = generate(session, [Request(tuple(prompt), NEW_TOKENS, **wanted) for prompt in PROMPTS])
    replayed = generate(session, [Request(tuple(prompt), NEW_TOKENS, sampling=GREEDY) for prompt in PROMPTS])
    found = {
        "ids": [list(result.output_ids) for result in whole],
        "logits": [result.generation_logits.tolist() for result in whole],
        "replayed": [list(result.output_ids) for result in replayed],
    }
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
