"""Open a Hugging Face OPT directory: find its weight files, list their tensors and check that they are this OPT's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from opt_trt.errors import UserError
from opt_trt.host.json_file import read_json
from opt_trt.sources.hf_config import read_hf_config
from opt_trt.sources.listed import ListedSource, join_names, listed_source
from opt_trt.sources.opt import OptConfig
from opt_trt.sources.stored import Loaded, Stored, contiguous_stride
from opt_trt.sources.torch_bin import list_torch_bin

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
DTYPES = FLOATS | OTHERS | {"BOOL": torch.bool}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def recognizes(directory: Path) -> bool:
    """Return whether this looks like a Hugging Face directory, complete or incomplete."""
    return (directory / "config.json").exists() or any((directory / name).exists() for name in LAYOUTS)


def open_source(directory: Path) -> ListedSource:
    """Open the directory; `UserError` names tensors that are missing, unexpected or mis-shaped, and missing files."""
    refuse_pointer(directory / "config.json")
    config = read_hf_config(directory / "config.json")
    named = ((entry.key.removeprefix("model."), entry) for entry in list_weights(directory))
    return replace(listed_source(config, named, directory), notes=_end_note(config))


def _end_note(config: OptConfig) -> tuple[str, ...]:
    """Return a line on the end tokens if these are not the common one."""
    if config.end_token_ids is None:
        return ()
    named = " ".join(map(str, config.end_token_ids))
    return (f"outputs end at token ids {named}" if named else "outputs have no end token, only a length",)


def list_weights(directory: Path) -> list[Stored | Loaded]:
    """List the tensors of the weight files; prefer safetensors to `.bin`, and one file to several."""
    for name, (list_file, indexed) in LAYOUTS.items():
        path = directory / name
        if path.exists():
            refuse_pointer(path)
            if indexed:
                return _list_shards(path, list_file)
            _refuse_two_models(path)
            return list_file(path)
    for pattern, kind in UNREADABLE.items():
        for path in sorted(directory.glob(pattern)):
            raise UserError(f"{directory} has only {kind} ({path.name}); fetch its safetensors or .bin files too")
    raise UserError(f"{directory} has no weights: expected one of {', '.join(LAYOUTS)}; fetch them into it")


def _list_shards(index: Path, list_file: Callable[[Path], list[Stored | Loaded]]) -> list[Stored | Loaded]:
    """List the tensors of all files in an index; refuse a file that lacks tensors which the index lists for it."""
    weight_map = _read_index(index)
    tensors: list[Stored | Loaded] = []
    for name in sorted({str(value) for value in weight_map.values()}):
        path = index.parent / name
        if Path(name).name != name or not path.exists():
            raise UserError(f"{index} names the file {name!r}, which is not beside it; fetch it into {index.parent}")
        refuse_pointer(path)
        entries = list_file(path)
        promised = {key for key, file in weight_map.items() if file == name}
        if lacking := sorted(promised - {entry.key for entry in entries}):
            raise UserError(f"{path} lacks {join_names(lacking)}, which {index.name} says it holds; fetch it again")
        tensors += [entry for entry in entries if weight_map.get(entry.key, name) == name]
    return tensors


def _read_index(index: Path) -> dict[str, Any]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} must hold a weight_map of tensor names to files; fetch it again")
    return weight_map


def _refuse_two_models(path: Path) -> None:
    """Refuse one weight file beside an index that names other files, because it is unclear which is the model."""
    index = path.with_name(f"{path.name}.index.json")
    if index.exists() and set(_read_index(index).values()) != {path.name}:
        raise UserError(f"{path.parent} has {path.name} and {index.name}, which names other files; remove one model")


def _list_safetensors(path: Path) -> list[Stored | Loaded]:
    """List the tensors of a safetensors file: dtype and shape from its header, places from the order of the offsets."""
    try:
        with safe_open(path, framework="numpy") as file, path.open("rb") as raw:
            offset = 8 + int.from_bytes(raw.read(8), "little")
            tensors: list[Stored | Loaded] = []
            for key in file.offset_keys():
                part = file.get_slice(key)
                shape, code = tuple(part.get_shape()), part.get_dtype()
                if code not in DTYPES:
                    raise UserError(f"{path}: {key} has dtype {code}; only {', '.join(FLOATS)} can be converted")
                dtype = DTYPES[code]
                tensors.append(Stored(path, key, dtype, shape, offset, contiguous_stride(shape)))
                offset += math.prod(shape) * dtype.itemsize
            return tensors
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not safetensors ({error}); fetch the file again") from error


def refuse_pointer(path: Path) -> None:
    """Refuse a git-lfs pointer, which stands in the place of a file that was not fetched."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in {path.parent}"
                )


LAYOUTS: dict[str, tuple[Callable[[Path], list[Stored | Loaded]], bool]] = {  # in order of preference
    "model.safetensors": (_list_safetensors, False),
    "model.safetensors.index.json": (_list_safetensors, True),
    "pytorch_model.bin": (list_torch_bin, False),
    "pytorch_model.bin.index.json": (list_torch_bin, True),
}
UNREADABLE = {
    "tf_model*": "TensorFlow weights",
    "flax_model*": "Flax weights",
    "rust_model*": "Rust weights",
    "*.gguf": "llama.cpp weights",
    "*.onnx": "an ONNX graph",
    "*.h5": "TensorFlow weights",
    "*.msgpack": "Flax weights",
    "adapter_model*": "the weights of an adapter",
    "*.safetensors": "safetensors under another name or without their index",
    "*.bin": "torch files under another name or without their index",
}
