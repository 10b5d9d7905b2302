"""The directory that keeps compiled programs, timings and engines between runs; all of it may be deleted."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/opt_trt`, or `~/.cache/opt_trt` if that is not set; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opt_trt"
