"""Checkpoints to build, a machine that seems to have a GPU and TensorRT-LLM, and sessions over its double."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from opt_trt.backends import open_engine
from opt_trt.config.convert import ConvertConfig
from opt_trt.config.runtime import RuntimeOptions
from opt_trt.config.scheduling import Scheduling
from opt_trt.convert import convert
from opt_trt.runtime.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session
from tests.trtllm._engine_dirs import write_engine
from tests.trtllm._facts import Facts, load
from tests.trtllm._package import environment, install
from tests.trtllm._runner import Seen, modules

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
    """The directory of a checkpoint of `CHECKPOINTS`, converted when first asked for."""
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
        monkeypatch.chdir(tmp_path)
        return directory / "tensorrt_llm"

    return put


@contextmanager
def installed(facts: Facts, seen: Seen, rank: int = 0) -> Iterator[None]:
    """The double's modules in `sys.modules`."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensorrt_llm"}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules(facts, seen, rank))
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]:
            del sys.modules[name]
        sys.modules.update(before)


def facts_of(release: str) -> Facts:
    """The facts of a release, and its version."""
    loaded = load(release)
    return loaded.facts | {"version": loaded.version}  # type: ignore[dict-item]


@dataclass
class Double:
    """What a test has of the double."""

    directory: Path
    seen: Seen

    def engine(self, **changes: Any) -> Path:
        """An engine directory."""
        return write_engine(self.directory / "engine", **changes)

    def open(self, options: RuntimeOptions | None = None, how: Any = (), **changes: Any) -> Session:
        """A session; `how` are limit and scheduling."""
        limit, scheduling = how or (KvCacheLimit(), Scheduling())
        return open_engine(self.engine(**changes), limit, scheduling, options)


@pytest.fixture(params=["1.2"])
def double(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Double]:
    """The newest release's, unless a test names others."""
    seen = Seen()
    with installed(facts_of(request.param), seen):
        yield Double(tmp_path, seen)
