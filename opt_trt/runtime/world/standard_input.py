"""Whether a program under a launcher learns that its standard input has ended."""

from __future__ import annotations

import os

from opt_trt.runtime.world import OPEN_MPI, World

TERMINALS = ("/dev/pts/", "/dev/tty")


def input_ends(world: World) -> bool:
    """False where the launcher passes on what it reads, but not that there is no more.

    Open MPI 5 keeps its end of rank 0's pipe open. Whoever types at a terminal can still end the program by Ctrl-C.
    """
    return world.launcher != OPEN_MPI or _input_of(os.getppid()).startswith(TERMINALS)


def _input_of(pid: int) -> str:
    """Where the standard input of a process of this user comes from."""
    try:
        return os.readlink(f"/proc/{pid}/fd/0")
    except OSError:
        return ""
