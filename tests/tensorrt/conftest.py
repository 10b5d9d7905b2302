"""Checkpoints of the demo model in every precision, and the logs of real builds of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from opt_trt.backends.tensorrt.bindings import EngineShape
from opt_trt.backends.tensorrt.compile_rank import Job
from opt_trt.backends.tensorrt.library import missing
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from tests._processes import ROOT, run_python

DEMO = ROOT / "examples" / "demo" / "model"
LAYERS = 4  # of the demo model
PRECISIONS = {
    "fp32": {"dtype": "float32"},
    "fp16": {},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"use_weight_only": True, "target_sm": 80},
    "int4": {"use_weight_only": True, "weight_only_precision": "int4", "target_sm": 80},
    "deferred": {"use_weight_only": True, "defer_quantization": True},
    "tp2": {"tp_size": 2},
}
SHAPE = EngineShape(slots=16, capacity=128, most_tokens=64, usual_tokens=32)
Checkpoints = Callable[[str], Path]
Logs = Callable[[str], list[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder where there is no library, and say why."""
    if problem := missing():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason=f"backend tensorrt: {problem}"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Return a function from a name in `PRECISIONS` to a checkpoint of the demo model; it converts on first use."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "checkpoint"
            convert(
                ConvertConfig(model_dir=str(DEMO), output_dir=str(made[name]), log_level="error", **PRECISIONS[name])
            )
        return made[name]

    return make


def job_of(checkpoint: Path, plan: Path, target_sms: list[int], **changes: object) -> Job:
    """Return the job of a small engine."""
    values: dict[str, object] = {
        "checkpoint_dir": str(checkpoint), "packed_sm": None, "rank": 0, "shape": asdict(SHAPE),
        "logits_dtype": "float32", "lm_head_precision": None, "target_sms": target_sms, "builder_flags": [],
        "fast": False, "plan": str(plan), "input_timing_cache": None, "output_timing_cache": None,
        "lists_network": False, "is_verbose": False,
    }  # fmt: skip
    return Job(**values | changes)


def build_all(jobs: Mapping[str, Job], directory: Path) -> dict[str, list[str]]:
    """Return the log of each build, by its name. One process makes all of them."""
    (directory / "jobs.json").write_text(json.dumps({name: asdict(job) for name, job in jobs.items()}))
    done = run_python("-m", "tests.tensorrt._many_builds", directory, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads((directory / "logs.json").read_text())
    return found


# The builds whose kernels are checked: a precision, and the SMs of one engine.
BUILDS = {
    **{f"{name} {sm}": (name, [sm]) for name in ("fp32", "fp16", "bf16", "int8", "int4") for sm in (80, 89, 120)},
    **{f"{name} 75": (name, [75]) for name in ("fp16", "int8")},
    "fp16 75 86": ("fp16", [75, 86]),
    "unnamed": ("fp16", [80]),  # of the network without the names of dimensions
}


@pytest.fixture(scope="session")
def logs(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logs]:
    """Return a function from a name in `BUILDS` to the log of that build."""
    directory = tmp_path_factory.mktemp("builds")
    jobs = {name: job_of(checkpoints(precision), directory / "plan", sms) for name, (precision, sms) in BUILDS.items()}
    found = build_all(jobs, directory)
    yield lambda name: found[name]
