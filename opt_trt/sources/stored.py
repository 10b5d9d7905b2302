"""The place of a tensor in a file; its values are read from there block by block.

Files are read, not mapped: the pages of a mapping that were touched count as memory until the whole file is unmapped,
and the system may refuse a private mapping of a file that is larger than the memory.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch

from opt_trt.errors import UserError

BLOCK_ELEMENTS = 1 << 19  # small enough to stay in the processor's cache between reading and writing


class TensorInfo(Protocol):
    """The name, type and shape of a tensor of a source."""

    @property
    def key(self) -> str:
        """The tensor's own name in its file."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The stored type."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor that is still in its file; `offset` is in bytes from the start of the file, `stride` in elements."""

    path: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...]

    @property
    def where(self) -> str:
        """The tensor's own name and its file."""
        return f"{self.key} in {self.path}"

    def blocks(self) -> Iterator[torch.Tensor]:
        """Yield the rows in order, some at a time; each block reuses the memory of the one before.

        `UserError` names a file that ends too early.
        """
        rows, row = rows_per_block(self.shape), math.prod(self.shape[1:])
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            if self.stride != contiguous_stride(self.shape):  # stored as a view, for example transposed
                span = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
                yield from _in_rows(self._fill(file, self._buffer(span)).as_strided(self.shape, self.stride))
                return
            buffer = self._buffer(rows * row)
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                yield self._fill(file, buffer[: count * row]).view(count, *self.shape[1:])

    def rows(self, start: int, stop: int) -> Stored:
        """Return some of its rows as a tensor of its own."""
        offset = self.offset + start * self.stride[0] * self.dtype.itemsize
        return replace(self, shape=(stop - start, *self.shape[1:]), offset=offset)

    def _buffer(self, elements: int) -> torch.Tensor:
        return torch.empty(elements, dtype=self.dtype)

    def _fill(self, file: FileIO, buffer: torch.Tensor) -> torch.Tensor:
        view = buffer.view(torch.uint8).numpy().data
        while view:
            count = file.readinto(view)
            if not count:
                raise UserError(f"{self.path} ends in the middle of {self.key}; fetch the file again")
            view = view[count:]
        return buffer


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the distance of neighbours along each axis of a row-major tensor, in elements."""
    steps = accumulate(reversed(shape[1:]), operator.mul, initial=1)
    return tuple(reversed(list(steps)))[: len(shape)]


def _in_rows(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    rows = rows_per_block(tuple(tensor.shape))
    return (tensor[start : start + rows] for start in range(0, len(tensor), rows))


def rows_per_block(shape: tuple[int, ...]) -> int:
    """Return the number of rows in a block of a tensor."""
    return min(shape[0], max(1, BLOCK_ELEMENTS // math.prod(shape[1:])))
