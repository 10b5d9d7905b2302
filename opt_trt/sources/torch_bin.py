"""List the tensors of a `pytorch_model.bin` with their places, without running the code that a pickle may hold."""

from __future__ import annotations

from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.sources.stand_ins import Tensor
from opt_trt.sources.stored import Stored
from opt_trt.sources.unpickle import unpickle

WRAPPER = "module"  # the key under which trainers keep the state dict, beside counters and settings


def list_torch_bin(path: Path) -> list[Stored]:
    """List the tensors of a file written by `torch.save`; `UserError` if it holds anything else."""
    values = unpickle(path)
    if isinstance(values, dict) and isinstance(values.get(WRAPPER), dict):
        values = values[WRAPPER]
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise UserError(f"{path} must hold a dictionary of tensors, found {type(values).__name__}; give a state dict")
    return [Stored(path, str(key), t.dtype, t.shape, t.offset, t.stride) for key, t in values.items()]
