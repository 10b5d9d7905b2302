"""Describing and exporting any model need their libraries, and a few times the largest tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from tests.unit._memory import peak_bytes
from tests.unit._models import Model

MIB = 1 << 20
LARGEST = 16 * MIB  # of the whole model: [8192, 1024] in fp16; all tensors together are ten times as large
DESCRIBE = ("opt_trt.config.describe_flags", "DescribeConfig", "opt_trt.describe.describe", "describe")
EXPORT = ("opt_trt.config.export_flags", "ExportConfig", "opt_trt.convert.export_hf", "export_hf")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two ranks with packed int4, because they need the most work to read."""
    root = tmp_path_factory.mktemp("memory")
    model = Model(vocab=8192, hidden=1024, width=1024, layers=4, ffn=8192, positions=64, dtype=torch.float16)
    assert sum(tensor.nbytes for tensor in model.tensors.values()) > 10 * LARGEST
    convert(ConvertConfig(model_dir=str(model.write(root / "model")), output_dir=str(root / "checkpoint"), tp_size=2,
                          use_weight_only=True, weight_only_precision="int4", log_level="error"))  # fmt: skip
    return root / "checkpoint"


@pytest.fixture(scope="module")
def baseline() -> int:
    """Return the peak memory of the libraries; describing imports all those of exporting."""
    return peak_bytes(*DESCRIBE)


def test_describing_holds_a_tensor_of_a_rank(checkpoint: Path, baseline: int) -> None:
    extra = peak_bytes(*DESCRIBE, directories=[str(checkpoint)], sha256=True) - baseline
    assert extra <= 2 * LARGEST, f"{extra / MIB:.0f} MiB"


def test_exporting_holds_a_whole_tensor_and_its_parts(checkpoint: Path, tmp_path: Path, baseline: int) -> None:
    """2.9 tensors were measured: a tensor, its parts, their packed form, and some MiB of blocks."""
    flags = {"checkpoint_dir": str(checkpoint), "output_dir": str(tmp_path / "hf"), "log_level": "error"}
    extra = peak_bytes(*EXPORT, **flags) - baseline
    assert extra <= 3.5 * LARGEST, f"{extra / MIB:.0f} MiB"
