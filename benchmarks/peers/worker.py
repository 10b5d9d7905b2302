"""The peer's side of the pipe: convert a model, or serve measurements. It needs the standard library only.

    python run_NAME.py convert HF_DIR OUT_DIR VARIANT
    python run_NAME.py serve MODEL_DIR VARIANT

When it serves, it prints the types it computes with, then answers one request per line until the input ends:

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
class LoadedModel:
    """A loaded model: its types (the fields of `Computes`) and its functions.

    `prepare` turns prompts into the peer's input before the clock starts. `generate` returns one list of ids per row.
    `logits` returns fp32 `[N, V]`; it takes prompts one at a time, because some peers compute logits of all tokens.
    """

    computes: dict[str, str]
    prepare: Callable[[Prompts], Any]
    generate: Callable[[Any, int], list[list[int]]]
    logits: Callable[[Prompts], Any]


def run(open_model: Callable[[str, str], LoadedModel], convert: Callable[[str, str, str], None] | None = None) -> None:
    """Run the peer's command: `convert` or `serve`."""
    verb, *rest = sys.argv[1:]
    if verb == "convert" and convert is not None:
        convert(*rest)
    else:
        serve(open_model, *rest)


def serve(open_model: Callable[[str, str], LoadedModel], model: str, variant: str) -> None:
    """Answer requests; the output of libraries goes to the log."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    opened = open_model(model, variant)
    print(json.dumps(opened.computes), file=replies, flush=True)
    for line in sys.stdin:
        [(question, asked)] = json.loads(line).items()
        print(json.dumps({question: ANSWERS[question](opened, **asked)}), file=replies, flush=True)


def seconds(opened: LoadedModel, prompts: Prompts, output_len: int) -> float:
    """Return the seconds of one generation; `RuntimeError` if the peer stops early, because it would look fast."""
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


def logits(opened: LoadedModel, prompts: Prompts) -> str:
    """Return the logits of the token that follows each prompt, in base64."""
    return base64.b64encode(opened.logits(prompts)).decode()


ANSWERS: dict[str, Callable[..., Any]] = {"seconds": seconds, "logits": logits}
