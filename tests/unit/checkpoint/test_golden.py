"""Checkpoints equal those of TensorRT-LLM byte for byte, for every golden case and every rank."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert

GOLDEN = Path(__file__).parents[2] / "golden"
MODELS = ("opt-tiny", "opt-tiny-postnorm")
KEYS = ("dtype", "weight_only_precision", "tp_size", "use_parallel_embedding", "embedding_sharding_dim", "sm")
CASES = [
    pytest.param(model, case, id="-".join([model, *(str(case[key]) for key in KEYS)]))
    for model in MODELS
    for case in json.loads((GOLDEN / f"{model}.json").read_text())["cases"]
]
FOLDED = {
    "transformer.vocab_embedding.weight",
    "lm_head.weight",
}  # these differ for a model with projections: see test_convert


def flags(case: dict[str, Any]) -> dict[str, Any]:
    quantized = case["weight_only_precision"] is not None
    return {key: case[key] for key in KEYS[:-1]} | {"use_weight_only": quantized, "target_sm": case["sm"]}


def describe(tensor: torch.Tensor) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(),
    }


def test_all_cases_are_here() -> None:
    assert len(CASES) == 18


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("model", "case"), CASES)
def test_bytes_are_tensorrt_llms(tmp_path: Path, model: str, case: dict[str, Any], workers: int) -> None:
    convert(ConvertConfig(model_dir=str(GOLDEN / model), output_dir=str(tmp_path / "out"), workers=workers,
                          log_level="error", **flags(case)))  # fmt: skip
    folded = FOLDED if model == "opt-tiny-postnorm" else set()
    for rank, golden in enumerate(case["ranks"]):
        tensors = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        assert tensors.keys() == golden.keys()
        for name, tensor in tensors.items():
            left_out = ("sha256",) if name in folded else ()
            expected = {key: value for key, value in golden[name].items() if key not in left_out}
            assert {key: describe(tensor)[key] for key in expected} == expected, (rank, name)
        assert Checkpoint(tmp_path / "out", rank).spec.keys() == golden.keys()
    assert len(list((tmp_path / "out").glob("rank*"))) == case["tp_size"]
