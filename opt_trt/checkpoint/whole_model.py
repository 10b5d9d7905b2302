"""Put the whole model together again from the ranks of a checkpoint: unpack, dequantize, join.

The reverse of `distribute`; a rank's parts are mapped from its file one tensor at a time.
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
    """A checkpoint as one model: whole tensors by canonical name, without padding, in the checkpoint's dtype.

    All rank files are checked when it is opened. Deferred weights are as stored: nothing has quantized them yet.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self.config = read_config(self.directory)
        self._mode, self._places = packed_mode(self.config), placements(self.config)
        check_target_sm(self.directory, self.config)
        mapping = self.config.mapping
        ranks = [Checkpoint(directory, rank) for rank in range(mapping.world_size)]
        self._homes = {  # whole-model name: the ranks that share the tensor, its name in their files
            whole: (ranks[stage * mapping.tp_size : (stage + 1) * mapping.tp_size], local)
            for stage in range(mapping.pp_size)
            for whole, local in stage_names(self.config, stage).items()
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, in the order the model uses them."""
        return {name: place.shape for name, place in self._places.items()}

    def stored_as(self, name: str) -> str:
        """The dtype of a tensor, or the quant mode of one that is stored as integers and scales."""
        return self._mode.name if self._mode is not None and is_linear(name) else self.config.dtype

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor; beside it, the parts of the ranks are in memory while it is made."""
        ranks, local = self._homes[name]
        return self._places[name].join([self._part(rank, local) for rank in ranks])

    def _part(self, rank: Checkpoint, name: str) -> torch.Tensor:
        stored = rank.tensor(name)
        if self._mode is None or not is_linear(name):
            return stored
        assert self.config.target_sm is not None  # checked when opened
        return unpack_and_dequantize(stored, rank.tensor(scale_name(name)), self._mode, self.config.target_sm)
