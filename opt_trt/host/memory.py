"""The memory that a process may still allocate on a device of this machine."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from pathlib import Path

import torch

CGROUP_FILES = (  # limit, usage: version 2, version 1
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
CGROUP_ROOTS = {"": "sys/fs/cgroup", "memory": "sys/fs/cgroup/memory"}  # controller → where it is mounted


def free_bytes(device: str) -> int:
    """Return the free bytes of a decoder's device, `cpu` or `cuda`."""
    return FREE[device]()


def available_bytes(root: Path = Path("/")) -> int:
    """Return the memory that Linux calls available, or less if a container's limit is lower.

    `root` is the directory that holds `proc` and `sys`.
    """
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min([machine, *_cgroup_headrooms(root)]))


def address_space_left() -> float:
    """Return the bytes that this process may still map under `ulimit -v`; infinity without that limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return max(0, limit - pages * resource.getpagesize())


def _cgroup_headrooms(root: Path) -> list[int]:
    """Return the bytes left under each memory limit of this process; page cache that can be dropped counts as left."""
    try:
        memberships = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for membership in memberships:  # hierarchy:controllers:path
        _, controllers, path = membership.split(":", 2)
        for controller in set(controllers.split(",")) & CGROUP_ROOTS.keys():
            mount = root / CGROUP_ROOTS[controller]
            group = mount / path.lstrip("/")
            parents = [p for p in (group, *group.parents) if p.is_relative_to(mount)]
            found += [room for p in parents if (room := _headroom(p)) is not None]
    return found


def _headroom(group: Path) -> int | None:
    for limit_name, usage_name in CGROUP_FILES:
        limit, usage = _read_number(group / limit_name), _read_number(group / usage_name)
        if limit is not None and usage is not None:
            return limit - usage + _inactive_file_bytes(group)
    return None


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _inactive_file_bytes(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def gpu_free_bytes() -> int:
    """Return the free bytes of the current GPU, after torch has released the memory that it caches."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return free


FREE: dict[str, Callable[[], int]] = {"cpu": available_bytes, "cuda": gpu_free_bytes}
