"""The TensorRT backend: an installed TensorRT-LLM builds engines and runs them on NVIDIA's GPUs."""

from __future__ import annotations

from opt_trt.backends.trtllm.engine_build import build
from opt_trt.backends.trtllm.engine_file import read_engine
from opt_trt.backends.trtllm.release import machine, missing
from opt_trt.backends.trtllm.runner import open_runner
from opt_trt.backends.trtllm.runner_session import RunnerSession
from opt_trt.runtime.follow import Opening
from opt_trt.runtime.ranks import Ranks
from opt_trt.runtime.session import Session

__all__ = ["build", "machine", "missing", "open"]


def open(opening: Opening, ranks: Ranks) -> Session:
    """Open a session on a TensorRT engine, also on one that `trtllm-build` wrote."""
    engine = read_engine(opening.engine_dir)
    return RunnerSession(engine, open_runner(engine, opening, ranks.rank), opening.options, ranks)
