"""Set up what must be set before torch loads, and mark tests by the folder that says what they need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opt_trt.runtime.world.cores import SPIN_COUNT

os.environ.setdefault(
    "GOMP_SPINCOUNT", SPIN_COUNT
)  # as the commands do: on a busy machine tests take minutes otherwise
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy multiplies small matrices in triton's interpreter only
if not Path("/dev/nvidiactl").exists():  # triton reads this once, when it is first imported, by any module
    os.environ.setdefault("TRITON_INTERPRET", "1")

HERE = Path(__file__).parent
# Of two workers one makes the largest engines while the other makes none, so nothing is compiled twice; then files of
# minutes, and those of seconds last, or one worker would end long before the other (with --no-loadscope-reorder).
ORDER = ("engine/test_readme.py", "triton", "trtllm", "engine", "ranks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by folder, so that `-m engine` selects tests/engine; sort them by `ORDER`, all others after those."""
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])
    items.sort(key=lambda item: _place(item.path.relative_to(HERE)))  # stable: a file's tests stay together


def _place(path: Path) -> int:
    return next((i for i, name in enumerate(ORDER) if path.is_relative_to(name)), len(ORDER))
