"""How many threads a rank computes with: its share of this host's cores."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from opt_trt.runtime.world import World

# How long OpenMP threads spin at a barrier before they sleep (read once, when torch loads). GCC's default is 4 ms: with
# a core taken by another process a token took 137 to 300 ms instead of 1; at this count 1 to 8, and 1 on idle cores.
SPIN_COUNT = "10000"


def share_cores(world: World, environ: MutableMapping[str, str]) -> None:
    """Divide the cores over the ranks of this host, unless OMP_NUM_THREADS says how many threads to use.

    Acts on torch's thread count if torch is not loaded yet. `mpirun -n 2` binds each rank to a single core, however
    many there are: such a rank gets its share again. A rank bound to its share or more stays where it is.
    """
    if world.size == 1 or "OMP_NUM_THREADS" in environ:
        return
    cores = _cores_of_launcher()
    share = max(1, len(cores) // world.local_size)
    if len(os.sched_getaffinity(0)) < share:
        start = world.local_rank * share
        os.sched_setaffinity(0, cores[start : start + share])
    environ["OMP_NUM_THREADS"] = str(share)


def _cores_of_launcher() -> list[int]:
    """The cores the launcher may use, which are this container's or job's; it is the parent, or a parent's parent is.

    Where processes hide from each other, those of this process.
    """
    try:
        return sorted(os.sched_getaffinity(os.getppid()) | os.sched_getaffinity(0))
    except OSError:
        return sorted(os.sched_getaffinity(0))
