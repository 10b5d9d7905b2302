"""Stand-ins in a pickle's values: for tensors, and for objects of classes that are not imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

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

    def add(self, value: Any) -> None:
        """Ignore an item of a set."""

    def extend(self, values: Iterable[Any]) -> None:
        """Ignore several items."""


class Row(tuple[Any, ...]):
    """A tuple that is no key of a dictionary: tuples within tuples would be hashed, and compared, for ever."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


class Items(dict[Any, Any]):
    """A dictionary that ignores the attributes of a state dict, because they would hide its methods."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()

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
