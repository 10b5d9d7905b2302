"""Read a pickle that torch wrote, without running its code and within bounds of memory and time.

A tensor becomes its place in the file. Training left objects of omegaconf, argparse, metaseq and fairscale in these
files; their classes are never imported, and a `Stub` keeps the state of each object. A pickle that names anything else
(`os.system`, `builtins.eval`) is refused, because such a name has no purpose but to run code. So a pickle can only make
values. Each value costs about 100 bytes, a pickle has at most `PICKLE_LIMIT` bytes, and no instruction copies or
hashes what is long: tuples within tuples could be hashed for years.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch

from opt_trt.errors import UserError
from opt_trt.sources.stand_ins import STORAGES, STUBBED, Items, Row, Storage, Stub, Tensor

PICKLE_LIMIT = 4 << 20  # bytes; the table of OPT-175B's tensors has 0.3 MB
MOST_ARGUMENTS = 64  # of a call; torch's have at most seven
MOST_CLASSES = 1000  # foreign ones, each of which takes a kilobyte
MOST_DIMENSIONS = 64  # as in torch
LARGEST = 2**62  # a number of elements or bytes
LONGEST_NAME = 1000  # characters of a class or of a storage
FindStorage = Callable[[str, torch.dtype, int], Storage]  # of a key, a type and a number of elements


class SafeUnpickler(pickle._Unpickler):  # the one in C allocates 64 GB if a damaged byte names memo entry 2**32
    """A reader of the pickle at the position of `file`; `find_storage` says where the numbers of tensors lie."""

    stack: list[Any]
    append: Callable[[Any], None]  # to the stack
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[..., Any]]] = dict(pickle._Unpickler.dispatch)  # instructions by their byte

    def __init__(self, path: Path, file: io.BytesIO, find_storage: FindStorage) -> None:
        super().__init__(file)
        self.path, self._find_storage = path, find_storage
        self._stubs: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name in the pickle; nothing is imported."""
        if len(module) + len(name) > LONGEST_NAME:
            raise ValueError("a name that is too long")
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
        if (module, name) not in self._stubs:
            if len(self._stubs) >= MOST_CLASSES:
                raise ValueError(f"it names more than {MOST_CLASSES} classes")
            self._stubs[module, name] = type(name, (Stub,), {"__module__": module})
        return self._stubs[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that `("storage", type, key, device, elements)` describes."""
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype) or type(count) is not int or not 0 <= count < LARGEST:
            raise ValueError("a storage without a type or a size")
        if not isinstance(key, str) or len(key) > LONGEST_NAME:
            raise ValueError("a storage without a name")
        return self._find_storage(key, dtype, count)

    def _make(self, make: Callable[..., Any], arguments: Any, named: Any = ()) -> None:
        """Push what a call returns; the arguments are few, because they are copied."""
        if len(arguments) + len(named) > MOST_ARGUMENTS:
            raise ValueError(f"a call with more than {MOST_ARGUMENTS} arguments")
        self.append(make(*arguments, **dict(named)))

    def _push_row(self, values: Iterable[Any]) -> None:
        self.append(Row(values))

    def _tuple(self) -> None:
        self._push_row(self.pop_mark())

    def _tuple1(self) -> None:
        self._push_row([self.stack.pop()])

    def _tuple2(self) -> None:
        self._push_row(reversed([self.stack.pop(), self.stack.pop()]))

    def _tuple3(self) -> None:
        self._push_row(reversed([self.stack.pop(), self.stack.pop(), self.stack.pop()]))

    def _empty_set(self) -> None:
        self.append(Stub())

    def _frozenset(self) -> None:
        self.pop_mark()
        self.append(Stub())

    def _add_items(self) -> None:
        self.pop_mark()

    def _reduce(self) -> None:
        arguments, make = self.stack.pop(), self.stack.pop()
        self._make(make, arguments)

    def _new(self) -> None:
        arguments, made = self.stack.pop(), self.stack.pop()
        self._make(made.__new__, (made, *arguments[: MOST_ARGUMENTS + 1]))

    def _new_named(self) -> None:
        named, arguments, made = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._make(made.__new__, (made, *arguments[: MOST_ARGUMENTS + 1]), named)

    def _instantiate(self, made: Any, arguments: list[Any]) -> None:
        self._make(made, arguments)

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Stub | Items):
            raise ValueError(f"it sets the state of a {type(made).__name__}")
        made.__setstate__(state)

    def _refuse(self) -> None:
        raise ValueError("an array of bytes, or a number with too many digits")

    dispatch |= {
        pickle.TUPLE[0]: _tuple, pickle.TUPLE1[0]: _tuple1, pickle.TUPLE2[0]: _tuple2, pickle.TUPLE3[0]: _tuple3,
        pickle.EMPTY_SET[0]: _empty_set, pickle.FROZENSET[0]: _frozenset, pickle.ADDITEMS[0]: _add_items,
        pickle.REDUCE[0]: _reduce, pickle.NEWOBJ[0]: _new, pickle.NEWOBJ_EX[0]: _new_named,
        pickle.BUILD[0]: _build, pickle.BYTEARRAY8[0]: _refuse,
        pickle.INT[0]: _refuse, pickle.LONG[0]: _refuse, pickle.LONG4[0]: _refuse,
    }  # fmt: skip


def _rebuild_tensor(storage: Storage, start: int, shape: Iterable[int], stride: Iterable[int], *_: Any) -> Tensor:
    shape, stride = _size(shape), _size(stride)
    numbers = (start, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or not all(map(_is_size, numbers)):
        raise ValueError("a tensor that is no view of a storage")
    last = start + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"a tensor of {list(shape)} reaches beyond the end of its storage")
    if math.prod(shape) > storage.size:
        raise ValueError(
            f"a tensor of {list(shape)} repeats the {storage.size} elements that are stored; save it contiguous"
        )
    return Tensor(storage.offset + start * storage.dtype.itemsize, storage.dtype, tuple(shape), tuple(stride))


def _size(values: Iterable[int]) -> Row:
    if not isinstance(values, tuple | list) or len(values) > MOST_DIMENSIONS:
        raise ValueError(f"a shape that is no list of up to {MOST_DIMENSIONS} sizes")
    return Row(values)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _rebuild_with_attributes(rebuild: Callable[..., Any], kind: Any, arguments: tuple[Any, ...], *_: Any) -> Any:
    return rebuild(*arguments[:MOST_ARGUMENTS])


REBUILDS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): Items,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_with_attributes,
}
