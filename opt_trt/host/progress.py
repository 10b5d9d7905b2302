"""Bars that say how far a command has come."""

from __future__ import annotations

from tqdm import tqdm

from opt_trt.config.flags import TALKATIVE


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no annotations
    """A bar without tqdm's thread that redraws bars which stand still, and which no one would end."""

    monitor_interval = 0


def byte_bar(verb: str, total: int, log_level: str) -> Bar:
    """A bar over `total` bytes, on stderr; nothing when that is not a terminal or the log level is a quiet one."""
    quiet = None if log_level in TALKATIVE else True
    return Bar(total=total, desc=verb, unit="B", unit_scale=True, disable=quiet, leave=False)
