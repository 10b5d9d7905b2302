"""Open a Hugging Face OPT directory: find its weight files, list their tensors and check that they are this OPT's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from opt_trt.config.json_file import read_json
from opt_trt.errors import UserError
from opt_trt.sources.hf_config import read_hf_config
from opt_trt.sources.opt import EMBEDDING, HEAD, POSITIONS, OptConfig, source_shapes
from opt_trt.sources.stored import Entry, Loaded, Stored, contiguous_stride
from opt_trt.sources.torch_bin import list_torch_bin

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
IGNORED = ("decoder.version",)  # a format number of early exports
LISTED = 6  # tensors an error names of each kind


@dataclass(frozen=True)
class HfSource:
    """An OPT in Hugging Face format; `tensors` maps names without the `model.` prefix to their place."""

    config: OptConfig
    tensors: dict[str, Stored | Loaded]
    notes: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether the files hold this tensor."""
        return name in self.tensors

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The rows of a tensor in order, a few MiB at a time, as stored; a block is valid until the next one."""
        return self.tensors[name].blocks()

    def where(self, name: str) -> str:
        """The tensor's spelling in its file."""
        stored = self.tensors[name]
        return f"{stored.key} in {stored.path}"


def recognizes(directory: Path) -> bool:
    """Whether this looks like a Hugging Face directory, complete or not."""
    return (directory / "config.json").exists() or any((directory / name).exists() for name in LAYOUTS)


def open_source(directory: Path) -> HfSource:
    """Open the directory; `UserError` names whatever is missing, left over, mis-shaped or not fetched."""
    _refuse_pointer(directory / "config.json")
    config = read_hf_config(directory / "config.json")
    stored = _list_directory(directory)
    tensors: dict[str, Stored | Loaded] = {}
    for entry in stored:
        name = entry.key.removeprefix("model.")
        if name in tensors:
            raise UserError(f"{entry.path} holds {entry.key} and {tensors[name].key}, the same tensor; remove one")
        if name not in IGNORED:
            tensors[name] = entry
    if config.tie_word_embeddings and EMBEDDING not in tensors and HEAD in tensors:
        tensors[EMBEDDING] = tensors.pop(HEAD)  # of the two names of a tied table, exports keep either
    check_tensors(config, tensors, f"the weights in {directory} are not those of its config.json")
    return HfSource(config, tensors)


def _list_directory(directory: Path) -> list[Stored | Loaded]:
    for name, (list_file, indexed) in LAYOUTS.items():
        path = directory / name
        if path.exists():
            _refuse_pointer(path)
            return _list_shards(path, list_file) if indexed else list_file(path)
    for pattern, kind in UNREADABLE.items():
        for path in sorted(directory.glob(pattern)):
            raise UserError(f"{directory} has {kind} only ({path.name}); fetch its safetensors or .bin files too")
    raise UserError(f"{directory} has no weights: expected one of {', '.join(LAYOUTS)}; fetch them into it")


def _list_shards(index: Path, list_file: Callable[[Path], list[Stored | Loaded]]) -> list[Stored | Loaded]:
    """The tensors of all files an index names, each checked to hold what the index promises of it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} must hold a weight_map of tensor names to files; fetch it again")
    tensors: list[Stored | Loaded] = []
    for name in sorted({str(value) for value in weight_map.values()}):
        path = index.parent / name
        if Path(name).name != name or not path.exists():
            raise UserError(f"{index} names the file {name!r}, which is not beside it; fetch it into {index.parent}")
        _refuse_pointer(path)
        entries = list_file(path)
        promised = {key for key, file in weight_map.items() if file == name}
        if lacking := sorted(promised - {entry.key for entry in entries}):
            raise UserError(f"{path} lacks {_some(lacking)}, which {index.name} says it holds; fetch the file again")
        tensors += [entry for entry in entries if weight_map.get(entry.key, name) == name]
    return tensors


def _list_safetensors(path: Path) -> list[Stored | Loaded]:
    """The header says dtype and shape; data lie one after another behind it, in the order of their offsets."""
    try:
        with safe_open(path, framework="numpy") as file, path.open("rb") as raw:
            offset = 8 + int.from_bytes(raw.read(8), "little")
            tensors: list[Stored | Loaded] = []
            for key in file.offset_keys():
                part = file.get_slice(key)
                shape, code = tuple(part.get_shape()), part.get_dtype()
                if code not in FLOATS:
                    raise UserError(f"{path}: {key} has dtype {code}; only {', '.join(FLOATS)} can be converted")
                dtype = FLOATS[code]
                tensors.append(Stored(path, key, dtype, shape, offset, contiguous_stride(shape)))
                offset += math.prod(shape) * dtype.itemsize
            return tensors
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not safetensors ({error}); fetch the file again") from error


def check_tensors(config: OptConfig, tensors: Mapping[str, Entry], problem: str) -> None:
    """Compare what is there with what the configuration asks for; every difference in one error, after `problem`."""
    expected = source_shapes(config)
    optional = {HEAD} if config.tie_word_embeddings else set()
    missing = [name for name in expected if name not in tensors and name not in optional]
    extra = [entry.key for name, entry in tensors.items() if name not in expected]
    wrong = [_difference(entry, expected[n], n) for n, entry in tensors.items() if n in expected]
    problems = {"missing": missing, "unexpected": extra, "wrong": [text for text in wrong if text]}
    found = "; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names)
    if found:
        raise UserError(f"{problem}: {found}; fetch them again")


def _difference(entry: Entry, shape: tuple[int, ...], name: str) -> str:
    if entry.dtype not in FLOATS.values():
        return f"{entry.key} has dtype {entry.dtype}, expected a floating one"
    if entry.shape == shape:
        return ""
    hint = " (max_position_embeddings + 2 rows)" if name == POSITIONS else ""
    return f"{entry.key} is {list(entry.shape)}, expected {list(shape)}{hint}"


def _refuse_pointer(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in {path.parent}"
                )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


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
    "adapter_model*": "the weights of an adapter",
    "*.safetensors": "safetensors under another name or without their index",
    "*.bin": "torch files under another name or without their index",
}
