"""The control groups that this process belongs to, in which a container's limits stand."""

from __future__ import annotations

from pathlib import Path

MOUNT = "sys/fs/cgroup"  # version 2, or the parent of one mount for each controller of version 1


def groups_of(controller: str, root: Path = Path("/")) -> list[Path]:
    """Return the directories of this process's groups with a controller, the innermost first, in either version.

    `root` is the directory that holds `proc` and `sys`.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for membership in memberships:  # hierarchy:controllers:path
        _, controllers, path = membership.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / MOUNT / controller if controllers else root / MOUNT
        group = mount / path.lstrip("/")
        found += [parent for parent in (group, *group.parents) if parent.is_relative_to(mount)]
    return found


def read_limit(path: Path) -> int | None:
    """Return the number in a file; None if there is no file, or no limit: `max` in version 2, -1 in version 1."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
