"""Where this user's compiled programs, timings and engines are kept between runs; all of it may be deleted."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/opt_trt`, else `~/.cache/opt_trt`; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opt_trt"
