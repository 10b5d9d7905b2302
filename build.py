"""Compile a TensorRT-LLM checkpoint of OPT into an engine."""

import os
import runpy
import sys

from opt_trt.commands import build


def build_package() -> None:
    """Run PyPI's `build`: in this directory `python -m build` finds this file before it."""
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != os.path.dirname(os.path.realpath(__file__))]
    try:
        runpy.run_module("build", run_name="__main__", alter_sys=True)
    except ImportError as error:
        sys.exit(f"error: {error}; install the package: pip install build. An engine is built by python build.py")


if __name__ == "__main__":
    build() if __spec__ is None else build_package()
