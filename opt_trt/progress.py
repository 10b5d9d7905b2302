"""A bar that says how far a command over the bytes of a model has come."""

from __future__ import annotations

from tqdm import tqdm

from opt_trt.config.flags import TALKATIVE


def byte_bar(verb: str, total: int, log_level: str) -> tqdm:
    """A bar over `total` bytes, on stderr; nothing when that is not a terminal or the log level is a quiet one."""
    quiet = None if log_level in TALKATIVE else True
    return tqdm(total=total, desc=verb, unit="B", unit_scale=True, disable=quiet, leave=False)
