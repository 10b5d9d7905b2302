"""List the tensors of a `pytorch_model.bin` with their places, without running the code that a pickle may hold."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from opt_trt.errors import UserError
from opt_trt.sources import torch_zip
from opt_trt.sources.stored import Loaded, Stored
from opt_trt.sources.unpickle import Tensor, unpickle

FOREIGN = re.compile(r"GLOBAL (\S+)")
WRAPPER = "module"  # the key under which trainers keep the state dict, beside counters and settings


def list_torch_bin(path: Path) -> list[Stored | Loaded]:
    """List the tensors of a file written by `torch.save`; a file older than torch 1.6 has no index and is loaded."""
    with path.open("rb") as file:
        indexed = torch_zip.is_zip(file)
    if indexed:
        named = _state_dict(unpickle(path), lambda value: isinstance(value, Tensor), path)
        return [Stored(path, key, t.dtype, t.shape, t.offset, t.stride) for key, t in named.items()]
    return [Loaded(path, key, tensor.detach()) for key, tensor in _state_dict(_load(path), _is_plain, path).items()]


def _is_plain(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def _state_dict(values: Any, is_tensor: Callable[[Any], bool], path: Path) -> dict[str, Any]:
    """Return tensors by name; `UserError` if there is anything else among them."""
    if isinstance(values, Mapping) and isinstance(values.get(WRAPPER), Mapping):
        values = values[WRAPPER]
    if not isinstance(values, Mapping) or not all(map(is_tensor, values.values())):
        raise UserError(f"{path} must hold a dictionary of tensors, found {type(values).__name__}; give a state dict")
    return {str(key): tensor for key, tensor in values.items()}


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # warnings about the pickle's protocol; its real problems are errors below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = FOREIGN.search(str(error))
        raise UserError(
            f"{path} holds {found[1] if found else 'something'} beside tensors or is damaged; it was not unpickled, "
            "because that can run code; fetch it again, or save the model as safetensors"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path} is truncated or not written by torch.save ({error}); fetch the file again") from error
