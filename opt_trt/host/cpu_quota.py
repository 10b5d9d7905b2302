"""The processors that a process may use: its affinity, and the quota of its container."""

from __future__ import annotations

import os
from pathlib import Path

from opt_trt.host.cgroup import groups_of, read_limit


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many processors' time the process may take: the least quota of its control groups, None without one.

    `root` is the directory that holds `proc` and `sys`.
    """
    return min((quota for group in groups_of("cpu", root) if (quota := _quota(group)) is not None), default=None)


def threads_line(threads: int, root: Path = Path("/")) -> str:
    """Say how many threads compute, and of how many cores."""
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota(root)
    limit = "" if quota is None else f"; the container's quota is {quota:g} of them"
    return f"threads: {threads}, of {cores} core{'s' * (cores != 1)}{limit}"


def _quota(group: Path) -> float | None:
    """Return the quota of a group in processors: of version 2 in one file, of version 1 in two."""
    try:
        limit, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return int(limit) / int(period)
    except (OSError, ValueError):  # "max" is no number
        quota, period_us = read_limit(group / "cpu.cfs_quota_us"), read_limit(group / "cpu.cfs_period_us")
        return quota / period_us if quota and period_us else None
