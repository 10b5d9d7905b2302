"""The contents of one metaseq file: tensors, hyper-parameters of the training, and the layout of flat vectors."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from opt_trt.errors import UserError, reason
from opt_trt.model.config import MAX_LAYERS, MAX_SIZE
from opt_trt.sources.safe_pickle import LARGEST, MOST_DIMENSIONS
from opt_trt.sources.stand_ins import Stub, Tensor
from opt_trt.sources.stored import Stored
from opt_trt.sources.unpickle import unpickle

Layout = dict[str, list[tuple[str, tuple[int, ...]]]]  # flat vector: names and shapes of its tensors, in order

FLAT = "flat_param_0"
SETTINGS = {  # metaseq's name: ours
    "decoder_embed_dim": "hidden_size",
    "decoder_layers": "num_hidden_layers",
    "decoder_ffn_embed_dim": "ffn_dim",
    "decoder_attention_heads": "num_attention_heads",
    "max_target_positions": "max_position_embeddings",
    "decoder_normalize_before": "do_layer_norm_before",
}
ACTIVATION = "relu"


@dataclass(frozen=True)
class PtFile:
    """A file's `tensors` by metaseq's names, and its `settings` by the names of `OptConfig`."""

    path: Path
    tensors: dict[str, Stored]
    settings: dict[str, int]

    @property
    def is_flat(self) -> bool:
        """True if tensors were concatenated into vectors."""
        return any(key.endswith(FLAT) for key in self.tensors)


def read_pt_file(path: Path) -> PtFile:
    """Read the table of a file; `UserError` if it is damaged, holds no named tensors or could run code."""
    top = unpickle(path)
    found = _fields(top)
    model = found.get("model", top)
    if not isinstance(model, dict) or not model:
        what = "an empty one" if model == {} else type(model).__name__
        raise UserError(f"{path} must hold a dictionary of tensors, found {what}; give a metaseq model")
    tensors = {}
    for key, value in model.items():
        if not isinstance(key, str) or not key.isprintable():
            raise UserError(f"{path} has {key!a} where the name of a tensor should be; fetch the file again")
        if not isinstance(value, Tensor) or not math.prod(value.shape) or not value.shape:
            kind = type(value)
            what = f"of shape {list(value.shape)}" if kind is Tensor else f"a {kind.__module__}.{kind.__name__}"
            raise UserError(f"{path}: {key} is {what}, expected a tensor with elements; give a metaseq checkpoint")
        name = intern(key)  # hundreds of files have the same names
        tensors[name] = Stored(path, name, value.dtype, value.shape, value.offset, value.stride)
    return PtFile(path, tensors, _settings(found, path))


def read_layout(path: Path) -> Layout:
    """Return the layout of flat vectors in `shard_metadata`; empty if the file has none."""
    layout: Layout = {}
    try:
        for module in _fields(_fields(unpickle(path)).get("shard_metadata")).get("param_metadata", ()):
            prefix = _name(module["fsdp_path"]) + "." if module["fsdp_path"] else ""
            for flat, info in module["params"].items():
                shapes = [_shape(shape) for shape in info["shapes"]]
                names = [prefix + _name(name) for name in info["names"]]
                layout[prefix + _name(flat)] = list(zip(names, shapes, strict=True))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: shard_metadata is not as fairscale writes it ({type(error).__name__}: {reason(error)}); fetch it "
            "again"
        ) from error
    return layout


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"a {type(value).__name__} in the place of a name")
    return value


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, tuple | list) or not all(type(size) is int and 0 < size < LARGEST for size in sizes):
        raise ValueError("a shape without sizes")
    return tuple(sizes[:MOST_DIMENSIONS])


def _fields(value: Any) -> dict[Any, Any]:
    """Return the contents of a dictionary, a Namespace or an OmegaConf container; nothing for any other value."""
    if isinstance(value, Stub):
        value = value.state
    if isinstance(value, dict) and isinstance(value.get("_content"), dict):
        value = value["_content"]
    return value if isinstance(value, dict) else {}


def _leaf(value: Any) -> Any:
    return _fields(value).get("_val", value)


def _settings(top: dict[Any, Any], path: Path) -> dict[str, int]:
    """Return the hyper-parameters in `args` and in `cfg.model`, which newer checkpoints have."""
    stated = _fields(top.get("args")) | _fields(_leaf(_fields(top.get("cfg")).get("model")))
    activation = _leaf(stated.get("activation_fn", ACTIVATION))
    if activation != ACTIVATION:
        found = reprlib.repr(activation)  # which may nest without end
        raise UserError(f"{path} says activation_fn = {found}; only models with {ACTIVATION!r} can be converted")
    values = {ours: _leaf(stated.get(theirs)) for theirs, ours in SETTINGS.items()}
    known = {name: value for name, value in values.items() if isinstance(value, bool | int) and value >= 0}
    for name, value in known.items():
        if value > MAX_LAYERS if name == "num_hidden_layers" else value > MAX_SIZE:
            raise UserError(f"{path} states a {name} beyond that of any model; fetch it again")
    return known
