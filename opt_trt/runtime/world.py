"""All processes of a run: how many there are and which one this is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opt_trt.errors import UserError

LAUNCHERS = (  # what a launcher tells its processes: world size, rank
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class World:
    """The processes one launcher started together."""

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process reads, schedules, samples and prints."""
        return self.rank == 0

    def require(self, engine_size: int) -> None:
        """Raise `UserError` unless there is one process for each rank of the engine."""
        if self.size != engine_size:
            raise UserError(
                f"world size must equal the engine's: it was built for {engine_size} "
                f"{'rank' if engine_size == 1 else 'ranks'}, {self.size} processes were started; "
                f"run it with mpirun -n {engine_size}" + " or without mpirun" * (engine_size == 1)
            )


def current_world(environ: Mapping[str, str]) -> World:
    """The world a launcher describes in the environment; one process where there is no launcher."""
    for size_name, rank_name in LAUNCHERS:
        size, rank = environ.get(size_name, ""), environ.get(rank_name, "")
        if size.isdigit() and rank.isdigit():
            return World(int(rank), int(size))
    return World()
