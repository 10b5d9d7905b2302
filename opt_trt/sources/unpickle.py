"""Read the pickle of a torch archive without running its code.

A tensor becomes its place in the file. Training left objects of omegaconf, argparse, metaseq and fairscale in these
files; their classes are never imported, and a `Stub` keeps the state of each object. A file that names anything else
(`os.system`, `builtins.eval`) is refused, because such a name has no purpose but to run code. So a pickle can only make
values.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from opt_trt.errors import UserError
from opt_trt.sources import torch_zip

CONTAINERS = (
    "object", "bool", "int", "float", "complex", "str", "bytes", "bytearray", "list", "tuple", "set", "frozenset",
    "dict", "slice", "range",
)  # fmt: skip
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
STUBBED: dict[str, tuple[str, ...]] = {  # top-level package: names that become a `Stub`; () stands for all names
    "omegaconf": (), "metaseq": (), "fairseq": (), "fairscale": (), "hydra": (), "typing": (), "pathlib": (),
    "enum": (), "datetime": (),
    "argparse": ("Namespace",),
    "collections": ("Counter", "defaultdict", "deque"),
    "builtins": CONTAINERS, "__builtin__": CONTAINERS,
    "copyreg": ("_reconstructor",), "copy_reg": ("_reconstructor",), "_codecs": ("encode",),
    "numpy": ("scalar", "_reconstruct", "ndarray", "dtype"),
    "torch": ("device", "Tensor", "Parameter", *DTYPES),
}  # fmt: skip
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class Stub:
    """An object of a class that is not imported; `state` is its state in the pickle."""

    state: Any = None

    def __new__(cls, *args: Any, **named: Any) -> Stub:
        """Accept any arguments, as the class may take them."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Ignore an item of a list or a queue."""

    def extend(self, values: Iterable[Any]) -> None:
        """Ignore several items."""


class Items(dict[Any, Any]):
    """A dictionary that ignores the attributes of a state dict, because they would hide its methods."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class Storage(NamedTuple):
    """A record of numbers; `offset` is in bytes from the start of the file, `size` in elements."""

    offset: int
    size: int
    dtype: torch.dtype


class Tensor(NamedTuple):
    """A tensor in the file, which a pickle cannot change; `offset` is in bytes from its start, `stride` in elements."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def unpickle(path: Path) -> Any:
    """Return the object that `torch.save` wrote, with `Tensor` for tensors and `Stub` for foreign objects.

    `UserError` for a file that is not an archive of torch, is damaged, or names something that could run code.
    """
    with path.open("rb") as file:
        if not torch_zip.is_zip(file):
            raise UserError(
                f"{path} was not written by torch.save of torch 1.6 or newer (a git-lfs pointer, an unfinished "
                "download?); fetch it again, or load it with the torch that wrote it and save it anew"
            )
        reader = _Unpickler(path, file)
        try:
            return reader.load()
        except (UserError, OSError):
            raise
        except Exception as error:  # a damaged pickle can fail in any way
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} is damaged or was not written by torch.save ({reason}); fetch the file again"
            ) from error


class _Unpickler(pickle._Unpickler):  # the one in C allocates 64 GB if a damaged byte names memo entry 2**32
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.records = {entry.filename.partition("/")[2]: entry for entry in torch_zip.entries(file)}
        if "data.pkl" not in self.records:
            raise UserError(f"{path} is a zip archive that torch.save did not write; fetch the file again")
        if "byteorder" in self.records and self._read("byteorder") != b"little":
            raise UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one")
        super().__init__(io.BytesIO(self._read("data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name in the pickle; nothing is imported."""
        known = REBUILDS.get((module, name))
        if known is not None:
            return known
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        allowed = STUBBED.get(module.partition(".")[0])
        if allowed is None or (allowed and name not in allowed):
            shown = ascii(f"{module}.{name}")[1:-1]
            raise UserError(
                f"{self.path} holds {shown} beside tensors and settings; it was not unpickled, because that can run "
                "code; fetch the file again from where you trust it"
            )
        return type(name, (Stub,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that `("storage", type, key, device, elements)` describes."""
        _, dtype, key, _, count = pid
        record = self.records[f"data/{key}"]
        if not isinstance(dtype, torch.dtype) or not 0 <= count * dtype.itemsize <= record.file_size:
            raise ValueError(f"storage {key} does not hold {count} elements of {dtype}")
        return Storage(torch_zip.data_offset(self.file, record), count, dtype)

    def _read(self, name: str) -> bytes:
        record = self.records[name]
        self.file.seek(torch_zip.data_offset(self.file, record))
        return self.file.read(record.file_size)


def _rebuild_tensor(storage: Storage, start: int, shape: Iterable[int], stride: Iterable[int], *_: Any) -> Tensor:
    shape, stride = tuple(shape), tuple(stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or any(n < 0 for n in (start, *shape, *stride)):
        raise ValueError("a tensor that is no view of a storage")
    last = start + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"a tensor of {list(shape)} reaches beyond the end of its storage")
    return Tensor(storage.offset + start * storage.dtype.itemsize, storage.dtype, shape, stride)


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _rebuild_with_attributes(rebuild: Callable[..., Any], kind: Any, arguments: tuple[Any, ...], *_: Any) -> Any:
    return rebuild(*arguments)


REBUILDS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): Items,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_with_attributes,
}
