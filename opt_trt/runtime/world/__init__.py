"""All processes of a run: their number and the rank of this one, as the launcher says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from opt_trt.errors import UserError


@dataclass(frozen=True)
class Launcher:
    """The environment variables in which a launcher describes its processes; local ones count on this host only."""

    name: str
    size: str
    rank: str
    local_size: str
    local_rank: str


OPEN_MPI = "mpirun of Open MPI"
TORCHRUN, TORCHRUN_ID = "torchrun", "TORCHELASTIC_RUN_ID"  # the variable that torchrun alone sets
LAUNCHERS = (  # the first launcher whose size and rank are set is used: mpirun under Slurm sets Slurm's, too
    Launcher(
        OPEN_MPI, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    Launcher(
        "mpirun of MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
    ),
    Launcher("mpirun of MPICH", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID"),
    Launcher(TORCHRUN, "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """The processes that one launcher started together; one process if there is no launcher."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes on this host
    local_size: int = 1
    launcher: str | None = None
    is_claimed: bool = False  # by variables that any program may have left: torchrun did not start this process

    @property
    def is_leader(self) -> bool:
        """True if this process reads, schedules, samples and prints."""
        return self.rank == 0

    def require(self, engine_size: int) -> None:
        """Raise `UserError` unless there is one process for each rank of the engine."""
        if self.size != engine_size:
            raise UserError(
                f"world size must equal the engine's: it was built for {engine_size} "
                f"{'rank' if engine_size == 1 else 'ranks'}, "
                f"{self.size} {'process was' if self.size == 1 else 'processes were'} started; "
                f"run it with mpirun -n {engine_size}" + " or without mpirun" * (engine_size == 1)
            )


def current_world(environ: Mapping[str, str]) -> World:
    """Return the world that a launcher describes in the environment; one process if there is no launcher.

    If the launcher does not say which processes are on this host, all of them are taken to be.
    """
    for launcher in LAUNCHERS:
        size, rank = _number(environ, launcher.size), _number(environ, launcher.rank)
        if size is None or rank is None:
            continue
        local_rank, local_size = _number(environ, launcher.local_rank), _local_size(environ, launcher)
        if local_rank is None or local_size is None:
            local_rank, local_size = rank, size
        claimed = launcher.name == TORCHRUN and TORCHRUN_ID not in environ and size > 1
        return World(rank, size, local_rank, local_size, launcher.name, claimed)
    return World()


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isdigit() else None


def _local_size(environ: Mapping[str, str], launcher: Launcher) -> int | None:
    """Return the number of processes on this host. Slurm lists all hosts: `2(x3),1` stands for 2, 2, 2 and 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get(launcher.local_size, "")):
        counts += [int(count)] * int(times or 1)
    host = _number(environ, "SLURM_NODEID") or 0 if len(counts) > 1 else 0
    return counts[host] if host < len(counts) else None
