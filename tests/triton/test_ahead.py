"""Every kernel compiles for the GPUs engines are built for, in both types, on a machine without one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

ROOT = Path(__file__).parents[2]
SHARED_BYTES = {80: 166_912, 90: 232_448}  # a program may have, by compute capability


def kernels():
    """Names of all kernels of the package."""
    for path in (ROOT / "opt_trt/plugins").rglob("triton_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                yield node.name


def compiled(capability, cache, *options):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "tests.triton._ahead", str(capability), *options]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_kernel_compiles_in_both_types(capability, tmp_path):
    found = compiled(capability, tmp_path)
    for dtype in ("torch.float16", "torch.bfloat16"):
        assert {row["kernel"] for row in found if row["dtype"] == dtype} == set(kernels())
    assert max(row["shared"] for row in found) <= SHARED_BYTES[capability]


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_variant_of_every_kernel_compiles(capability, tmp_path):
    found = compiled(capability, tmp_path, "--whole")
    assert len(found) > 100
    assert max(row["shared"] for row in found) <= SHARED_BYTES[capability]
