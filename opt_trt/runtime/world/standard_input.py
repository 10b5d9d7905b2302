"""Find out whether a program under a launcher learns that its standard input has ended."""

from __future__ import annotations

import os

from opt_trt.runtime.world import OPEN_MPI, World

TERMINALS = ("/dev/pts/", "/dev/tty")


def input_ends(world: World) -> bool:
    """Return False if the launcher passes on its input, but not the end of it.

    Open MPI 5 keeps its end of rank 0's pipe open. At a terminal, the user can still end the program with Ctrl-C.
    """
    return world.launcher != OPEN_MPI or _input_of(os.getppid()).startswith(TERMINALS)


def _input_of(pid: int) -> str:
    """Return the file that is the standard input of a process of this user."""
    try:
        return os.readlink(f"/proc/{pid}/fd/0")
    except OSError:
        return ""
