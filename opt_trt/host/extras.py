"""The packages that opt_trt needs: one that is missing is named, with the command that installs it."""

from __future__ import annotations

import sys

from opt_trt.errors import UserError

NEEDED = ("torch", "numpy", "safetensors", "transformers", "tqdm")  # by every command; see pyproject.toml


def missing_extra(error: ImportError | RuntimeError, extra: str) -> UserError:
    """Return the error for a package that only some commands need, which `extra` of opt_trt installs."""
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").partition(".")[0]
        return UserError(
            f"this command needs the package {name}, which is not installed: pip install 'opt_trt[{extra}]'"
        )
    return UserError(f"this command needs a library that cannot be loaded ({error}): pip install 'opt_trt[{extra}]'")


def is_needed(error: ModuleNotFoundError) -> bool:
    """Return whether a package that every command needs is missing."""
    return error.name in NEEDED


def missing_package(error: ModuleNotFoundError) -> UserError:
    """Return the error for a package that every command needs."""
    return UserError(
        f"{error.name} is not installed for {sys.executable}; activate the environment that has it (source "
        ".venv/bin/activate after make setup), or run pip install ."
    )
