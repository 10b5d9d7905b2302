"""The threads a rank computes with: its share of this host's cores, and how soon idle threads sleep."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from opt_trt.runtime.world import World

# Rounds that OpenMP threads spin at a barrier before they sleep; read once, when torch loads. GCC's default is 4 ms: a
# token took 137 to 300 ms instead of 1 while another process used one core. With this count it takes 1 to 8 ms then,
# and 1 ms on idle cores.
SPIN_COUNT = "10000"


def share_cores(world: World, environ: MutableMapping[str, str]) -> None:
    """Divide the cores over the ranks of this host, and let idle threads sleep soon; call this before torch is loaded.

    OMP_NUM_THREADS, if set, says how many threads to use, and GOMP_SPINCOUNT how long they spin. `mpirun -n 2` binds
    each rank to a single core, however many there are: such a rank gets its share back. A rank that is bound to its
    share or more stays where it is.
    """
    environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if world.size == 1 or "OMP_NUM_THREADS" in environ:
        return
    cores = _cores_of_launcher()
    share = max(1, len(cores) // world.local_size)
    if len(os.sched_getaffinity(0)) < share:
        start = world.local_rank * share
        os.sched_setaffinity(0, cores[start : start + share])
    environ["OMP_NUM_THREADS"] = str(share)


def _cores_of_launcher() -> list[int]:
    """Return the cores of the launcher, which are those of the container or job. The launcher is an ancestor.

    If the parent process is hidden, return the cores of this process.
    """
    try:
        return sorted(os.sched_getaffinity(os.getppid()) | os.sched_getaffinity(0))
    except OSError:
        return sorted(os.sched_getaffinity(0))
