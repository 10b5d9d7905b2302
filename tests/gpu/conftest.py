"""What only a GPU can show. The kernels' own tests, in tests/triton, run on it too where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why these tests cannot run, instead of failing each."""
    if not torch.cuda.is_available():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
