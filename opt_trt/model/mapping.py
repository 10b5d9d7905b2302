"""The tensor-parallel and pipeline-parallel coordinates of every rank of a run."""

from __future__ import annotations

from dataclasses import dataclass

from opt_trt.errors import UserError

MAX_RANKS = 1024  # along either axis; a damaged number would fill the memory with the names of their files


@dataclass(frozen=True)
class Mapping:
    """The sizes of a grid of ranks. As in TensorRT-LLM, tensor-parallel neighbours have consecutive numbers.

    `Mapping(8, tp_size=4, pp_size=2)` has the tensor-parallel groups `[0, 1, 2, 3]` and `[4, 5, 6, 7]`.
    """

    world_size: int = 1
    tp_size: int = 1
    pp_size: int = 1

    def __post_init__(self) -> None:
        if min(self.tp_size, self.pp_size) < 1:
            raise UserError(f"tp_size={self.tp_size} and pp_size={self.pp_size} must be at least 1")
        if max(self.tp_size, self.pp_size) > MAX_RANKS:
            raise UserError(f"tp_size={self.tp_size} and pp_size={self.pp_size} must be at most {MAX_RANKS}")
        if self.world_size != self.tp_size * self.pp_size:
            raise UserError(
                f"world_size must be tp_size * pp_size = {self.tp_size * self.pp_size}, found {self.world_size}"
            )

    def tp_rank(self, rank: int) -> int:
        """Return the tensor-parallel coordinate of a rank."""
        return rank % self.tp_size

    def pp_rank(self, rank: int) -> int:
        """Return the pipeline-parallel coordinate of a rank."""
        return rank // self.tp_size

    def layers(self, num_layers: int, pp_rank: int) -> range:
        """Return the layers of a pipeline stage; if they do not divide evenly, the first stages hold one more."""
        each, more = divmod(num_layers, self.pp_size)
        start = pp_rank * each + min(pp_rank, more)
        return range(start, start + each + (pp_rank < more))
