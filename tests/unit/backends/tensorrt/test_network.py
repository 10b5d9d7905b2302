"""Networks of all kinds of OPT compute transformers' logits; the interpreter reads what was added to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.backends.tensorrt._networks import (
    POST_NORM,
    PROJECTED,
    interpreted,
    make_checkpoint,
    needs_library,
    reference_model,
    save_model,
    worst_error,
)

pytestmark = needs_library

KINDS = {"pre-norm": {}, "post-norm": POST_NORM, "projected": PROJECTED}
# Logits have a standard deviation of about 1. fp32: sums in another order. fp16 and bf16: two layers of rounded tensors.
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root / kind, **sizes) for kind, sizes in KINDS.items()}


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_transformers(models, tmp_path, kind, dtype, mode):
    checkpoint = make_checkpoint(models[kind], tmp_path / "checkpoint", dtype, mode)
    error = worst_error(interpreted(checkpoint), checkpoint.config, reference_model(models[kind], dtype, mode))
    print(kind, dtype, mode, error)
    assert error < TOLERANCE[dtype]
