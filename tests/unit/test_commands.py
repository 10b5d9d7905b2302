"""What commands do before they import what computes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from opt_trt.cli import parse
from opt_trt.commands import COMMANDS, Command
from opt_trt.runtime.world import World

REQUIRED = {
    "build": ("--checkpoint_dir", "c"),
    "run": ("--max_output_len", "8"),
    "summarize": ("--test_trt_llm", "--hf_model_dir", "m"),
}


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize(
    ("flags", "expected"), [(("--threads", "1"), "1"), (("--intra_threads", "2"), "2"), ((), None)]
)
def test_threads_are_set_before_torch_loads(
    name: str, flags: Sequence[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("opt_trt.runtime.world.cores.cpu_quota", lambda root: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    config_class = COMMANDS[name].config_class
    Command(config_class, "builtins", "repr").start(parse(config_class, (*REQUIRED[name], *flags)), World())
    assert os.environ.get("OMP_NUM_THREADS") == expected
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
