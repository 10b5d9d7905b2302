"""Checkpoints to build, and a machine that seems to have a GPU and TensorRT-LLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from tests.trtllm._facts import load
from tests.trtllm._package import environment, install
from tests.trtllm._runner import RecordedCalls
from tests.trtllm._sessions import Double, installed

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "model"
CHECKPOINTS = {  # the demo model, converted in so many ways
    "fp16": {},
    "int8": {"use_weight_only": True, "target_sm": 80},
    "int4": {"use_weight_only": True, "weight_only_precision": "int4", "target_sm": 80},
    "deferred": {"use_weight_only": True, "defer_quantization": True},
    "tp2": {"tp_size": 2, "use_parallel_embedding": True},
    "pp2": {"pp_size": 2},
    "hopper": {"use_weight_only": True, "target_sm": 90},
}
Installer = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Callable[[str], Path]:
    """Return a function from the name of a checkpoint in `CHECKPOINTS` to its directory; it converts on first use."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "checkpoint"
            options = CHECKPOINTS[name]
            convert(ConvertConfig(model_dir=str(DEMO), output_dir=str(made[name]), log_level="error", **options))
        return made[name]

    return make


@pytest.fixture
def install_double(tmp_path, monkeypatch) -> Installer:
    """Let processes find a release of the double and a GPU: `install_double("1.2", SM="90")`; the package."""

    def put(release: str = "1.2", **double: str) -> Path:
        directory = install(tmp_path / "site", release)
        for name, value in environment(directory, **double).items():
            if name == "PYTHONPATH" or name.startswith("DOUBLE_"):
                monkeypatch.setenv(name, value)
        monkeypatch.syspath_prepend(str(directory))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: divmod(int(double.get("SM", "80")), 10))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a double")
        monkeypatch.chdir(tmp_path)
        return directory / "tensorrt_llm"

    return put


@pytest.fixture
def double(tmp_path) -> Iterator[Double]:
    """Return the runners of the newest release in this process, and engines for them."""
    seen = RecordedCalls()
    with installed(load("1.2").facts, seen):
        yield Double(tmp_path, seen)
