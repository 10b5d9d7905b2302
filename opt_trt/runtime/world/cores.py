"""The threads a rank computes with: its share of this host's cores and of its container's quota.

Kernels have a team of their own (`plugins/cpu/team.h`), of as many threads as torch uses.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from opt_trt.host.cpu_quota import cpu_quota
from opt_trt.runtime.world import World

# Rounds that OpenMP threads, which torch's own operations use, spin at a barrier before they sleep; read once, when
# torch loads. GCC's default is 4 ms: a token took 137 to 300 ms instead of 1 while another process used one core.
SPIN_COUNT = "10000"
THREADS = "OMP_NUM_THREADS"


def share_cores(
    world: World, environ: MutableMapping[str, str], threads: int | None = None, root: Path = Path("/")
) -> None:
    """Divide the cores over the ranks of this host, and let idle threads sleep soon; call this before torch is loaded.

    `threads` says how many threads to use, or else OMP_NUM_THREADS, if set; GOMP_SPINCOUNT how long they spin.
    `mpirun -n 2` binds each rank to a single core, however many there are: such a rank gets its share back. A rank that
    is bound to its share or more stays where it is. `root` is the directory that holds `proc` and `sys`.
    """
    environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if threads is None and THREADS in environ:
        return
    if world.size > 1:
        _bind_to_share(world)
    allowed, cores = allowed_threads(world, root), len(os.sched_getaffinity(0))
    if threads is not None or world.size > 1 or allowed < cores:
        environ[THREADS] = str(min(threads or allowed, allowed))


def allowed_threads(world: World, root: Path = Path("/")) -> int:
    """Return how many threads a rank may use: no more than cores, its affinity and its container's quota allow."""
    ranks = max(1, world.local_size)
    share = len(_cores_of_launcher()) // ranks if world.size > 1 else len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return max(1, share if quota is None else min(share, int(quota / ranks)))


def use_threads(world: World, threads: int | None) -> None:
    """Set torch's number of threads in a process that may have loaded torch before `share_cores` was called."""
    import torch  # commands call the other functions before they load it

    allowed = allowed_threads(world)
    warn_of_cut(threads, allowed)
    wanted = os.environ.get(THREADS, "").split(",")[0]
    most = int(wanted) if threads is None and wanted.isdigit() else allowed
    torch.set_num_threads(min(threads or torch.get_num_threads(), most))


def warn_of_cut(threads: int | None, allowed: int) -> None:
    """Say that fewer threads are used than asked for."""
    if threads is not None and threads > allowed:
        note = f"WARNING: {threads} threads were asked for; {allowed} can run here at once, so {allowed} compute"
        print(note, file=sys.stderr)


def _bind_to_share(world: World) -> None:
    cores = _cores_of_launcher()
    share = max(1, len(cores) // world.local_size)
    if len(os.sched_getaffinity(0)) < share:
        start = world.local_rank * share
        os.sched_setaffinity(0, cores[start : start + share])


def _cores_of_launcher() -> list[int]:
    """Return the cores of the launcher, which are those of the container or job. The launcher is an ancestor.

    If the parent process is hidden, return the cores of this process.
    """
    try:
        return sorted(os.sched_getaffinity(os.getppid()) | os.sched_getaffinity(0))
    except OSError:
        return sorted(os.sched_getaffinity(0))
