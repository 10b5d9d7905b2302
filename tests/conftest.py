"""Set up what must be set before torch loads, and mark tests by the folder that says what they need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opt_trt.cli import SPIN_COUNT

os.environ.setdefault(
    "GOMP_SPINCOUNT", SPIN_COUNT
)  # as the commands do: on a busy machine tests take minutes otherwise
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m engine` selects tests/engine, and so on."""
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])
