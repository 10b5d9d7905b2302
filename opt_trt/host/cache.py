"""The directory that keeps compiled programs, timings and engines between runs; all of it may be deleted."""

from __future__ import annotations

import os
from pathlib import Path

from opt_trt.errors import UserError


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/opt_trt`, or `~/.cache/opt_trt` if that is not set; it need not exist yet."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given).absolute() / "opt_trt"
    try:
        return Path.home() / ".cache" / "opt_trt"
    except RuntimeError as error:  # a user without an entry in the list of users
        raise UserError(
            "expected a home directory to keep compiled programs in, found none for this user; set XDG_CACHE_HOME to a "
            "directory that can be written"
        ) from error
