"""Every kernel compiles for the GPUs engines are built for, in both types, on a machine without one."""

from __future__ import annotations

import ast
import itertools
import json
from pathlib import Path

import pytest

from tests._processes import run_python

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

ROOT = Path(__file__).parents[2]
SHARED_BYTES = {80: 166_912, 90: 232_448}  # a program may have, by compute capability


def kernels():
    """Names of all kernels of the package and of the benchmarks."""
    for path in (*(ROOT / "opt_trt/plugins").rglob("triton_*.py"), *(ROOT / "benchmarks/kernels").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                yield node.name


def said(module, cache, *arguments):
    """What a process that compiles kernels instead of interpreting them prints."""
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    result = run_python("-m", f"tests.triton.{module}", *arguments, environment=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def fit(found):
    return all(row["shared"] <= SHARED_BYTES[row["sm"]] for row in found)


def test_every_kernel_compiles_for_every_gpu_in_both_types(tmp_path):
    found = said("_ahead", tmp_path, *map(str, SHARED_BYTES))
    for sm, dtype in itertools.product(SHARED_BYTES, ("torch.float16", "torch.bfloat16")):
        assert {row["kernel"] for row in found if (row["sm"], row["dtype"]) == (sm, dtype)} == set(kernels())
    assert fit(found)


def test_every_program_of_an_engine_exports_for_a_gpu_with_any_number_of_tokens(tmp_path):
    found = said("_export", tmp_path)
    norm, gemv, wide = "opt_trt.layer_norm", "opt_trt.gemv", "opt_trt.dequantize"
    generation, context = "opt_trt.generation_attention", "opt_trt.context_attention"
    split = [norm, "opt_trt.split_gemm", context, "opt_trt.split_gemm", norm, *["opt_trt.split_gemm"] * 2]
    library = [norm, wide, context, wide, norm, wide, wide]
    few = [norm, gemv, generation, gemv, norm, gemv, gemv]
    assert found == {
        "embedding": [], "layer_generation_1": few, "layer_generation_2": few, "layer_context_64": split,
        "layer_context_beyond_64": library, "layer_half_context_64": split, "layer_half_context_beyond_64": library,
        "head_1": [norm, gemv], "head_2": [norm, gemv],
    }  # fmt: skip


@pytest.mark.slow
def test_programs_of_tensor_parallel_ranks_export_with_their_sums(tmp_path):
    found = said("_export", tmp_path, "2")
    norm, gemv, summed = "opt_trt.layer_norm", "opt_trt.gemv", "_c10d_functional.all_reduce"
    few = [norm, gemv, "opt_trt.generation_attention", gemv, summed, norm, gemv, gemv, summed]
    assert found["embedding"] == [summed] and found["head_1"] == [norm, gemv]
    assert found["layer_generation_1"] == found["layer_generation_2"] == few
    assert all(calls.count(summed) == 2 for name, calls in found.items() if name.startswith("layer"))


@pytest.mark.slow
def test_every_variant_of_every_kernel_compiles(tmp_path):
    found = said("_ahead", tmp_path, *map(str, SHARED_BYTES), "--whole")
    assert len(found) > 200
    assert fit(found)
