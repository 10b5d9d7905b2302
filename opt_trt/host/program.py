"""The name by which this program was started, and the words that start another command in the same way."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

PACKAGE = "opt_trt"
# Commands with a script in the repository; scripts of an installed package are called `opt-trt-COMMAND`.
SCRIPTS = {
    "convert": "convert_checkpoint.py", "build": "build.py", "run": "run.py", "summarize": "summarize.py",
}  # fmt: skip
INSTALLED = "opt-trt-"


def program() -> str:
    """Return what the user typed before the flags: `python build.py`, `python -m opt_trt build`, `opt-trt-build`."""
    if module := _module():
        command = sys.argv[1:2] if module == PACKAGE else []
        return " ".join(("python -m", module, *command))
    script = sys.argv[0]
    return f"python {shlex.quote(script)}" if script.endswith(".py") else Path(script).name


def program_of(command: str) -> str:
    """Return what a user types to start another command, in the form in which this one was started."""
    script = Path(sys.argv[0])
    if _module() is None and script.name in SCRIPTS.values() and command in SCRIPTS:
        return f"python {shlex.quote(str(script.with_name(SCRIPTS[command])))}"
    if _module() is None and script.name.startswith(INSTALLED):
        return INSTALLED + command.replace("_", "-")
    return f"python -m {PACKAGE} {command}"


def _module() -> str | None:
    """Return the package that was started with `python -m`, or None."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not spec.name.endswith(".__main__"):
        return None
    name: str = spec.name.removesuffix(".__main__")
    return name if name.split(".")[0] == PACKAGE else None
