"""Read the ranks of a checkpoint as one whole model: unpack, dequantize and join their parts.

This is the reverse of `convert/rank_files`. Parts are mapped from the rank files, one tensor at a time.
"""

from __future__ import annotations

from pathlib import Path

import torch

from opt_trt.checkpoint.reader import Checkpoint, check_target_sm, read_config
from opt_trt.checkpoint.spec import packed_mode
from opt_trt.checkpoint.weight_only import unpack_and_dequantize
from opt_trt.model.placement import is_linear, placements, stage_names
from opt_trt.quant.mode import scale_name


class WholeModel:
    """The whole tensors of a checkpoint by canonical name, without padding, in the checkpoint's dtype.

    Opening it checks all rank files. Weights whose quantization is deferred are returned as they are stored.
    """

    def __init__(self, directory: Path | str, packed_sm: int | None = None) -> None:
        self.directory = Path(directory)
        self.config = read_config(self.directory, packed_sm)
        self._mode, self._places = packed_mode(self.config), placements(self.config)
        check_target_sm(self.directory, self.config)
        mapping = self.config.mapping
        ranks = [Checkpoint(directory, rank, self.config.target_sm) for rank in range(mapping.world_size)]
        self._homes = {  # name in the whole model: the ranks that share the tensor, its name in their files
            whole: (ranks[stage * mapping.tp_size : (stage + 1) * mapping.tp_size], local)
            for stage in range(mapping.pp_size)
            for whole, local in stage_names(self.config, stage).items()
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, in the order in which the model uses them."""
        return {name: place.shape for name, place in self._places.items()}

    def stored_as(self, name: str) -> str:
        """Return the dtype of a tensor, or its quantization mode if it is stored as integers and scales."""
        return self._mode.name if self._mode is not None and is_linear(name) else self.config.dtype

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor; while it is joined, the parts of the ranks are in memory too."""
        ranks, local = self._homes[name]
        return self._places[name].join([self._part(rank, local) for rank in ranks])

    def _part(self, rank: Checkpoint, name: str) -> torch.Tensor:
        stored = rank.tensor(name)
        if self._mode is None or not is_linear(name):
            return stored
        assert self.config.target_sm is not None  # checked when opened
        return unpack_and_dequantize(stored, rank.tensor(scale_name(name)), self._mode, self.config.target_sm)
