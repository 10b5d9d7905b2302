"""The peer's side of the pipe: convert a model, or serve measurements. Standard library only, for any environment.

    python run_NAME.py convert HF_DIR OUT_DIR VARIANT
    python run_NAME.py serve MODEL_DIR VARIANT

Serving, it says once what it computes with, then answers questions, a line each, until the input ends:

    {"seconds": {"prompts": ..., "output_len": ...}}    {"seconds": ...}
    {"logits": {"prompts": ...}}                        {"logits": fp32 in base64}
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Prompts = list[list[int]]


@dataclass(frozen=True)
class Opened:
    """A loaded model: what it computes with (the fields of `Computes`), how it generates, what its logits are.

    `prepare` turns prompts into what the peer takes, before the clock starts; `generate` answers one list of ids a row.
    `logits` answers fp32 `[N, V]`, the prompts taken one at a time: some peers compute those of all their tokens.
    """

    computes: dict[str, str]
    prepare: Callable[[Prompts], Any]
    generate: Callable[[Any, int], list[list[int]]]
    logits: Callable[[Prompts], Any]


def run(open_model: Callable[[str, str], Opened], convert: Callable[[str, str, str], None] | None = None) -> None:
    """The peer's `main`."""
    verb, *rest = sys.argv[1:]
    if verb == "convert" and convert is not None:
        convert(*rest)
    else:
        serve(open_model, *rest)


def serve(open_model: Callable[[str, str], Opened], model: str, variant: str) -> None:
    """Answer measurements; whatever libraries print goes to the log."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    opened = open_model(model, variant)
    print(json.dumps(opened.computes), file=replies, flush=True)
    for line in sys.stdin:
        [(question, asked)] = json.loads(line).items()
        print(json.dumps({question: ANSWERS[question](opened, **asked)}), file=replies, flush=True)


def seconds(opened: Opened, prompts: Prompts, output_len: int) -> float:
    """Of one generation; a peer that stops early must not look fast."""
    ready = opened.prepare(prompts)
    started = time.perf_counter()
    ids = opened.generate(ready, output_len)
    taken = time.perf_counter() - started
    lengths = {len(row) for row in ids}
    if len(ids) != len(prompts) or lengths != {output_len}:
        raise RuntimeError(
            f"expected {len(prompts)} rows of {output_len} new ids, found {len(ids)} of {sorted(lengths)}"
        )
    return taken


def logits(opened: Opened, prompts: Prompts) -> str:
    """Of the token that follows each prompt, in base64."""
    return base64.b64encode(opened.logits(prompts)).decode()


ANSWERS: dict[str, Callable[..., Any]] = {"seconds": seconds, "logits": logits}
