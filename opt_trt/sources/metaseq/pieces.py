"""A tensor of one model-parallel part, whose row-major elements lie in one or more segments of files."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch

from opt_trt.errors import UserError
from opt_trt.sources.stored import Stored, contiguous_stride

MOST_ROWS = 1 << 20  # of a matrix that is not stored as a whole: each becomes a segment


@dataclass(frozen=True)
class Segment:
    """Consecutive elements of the tensor `key` in a file; `offset` is in bytes from the start of the file."""

    path: Path
    key: str
    offset: int
    count: int


@dataclass(frozen=True)
class Piece:
    """A row-major tensor; its elements are those of its segments, one segment after the other."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, stored: Stored) -> Piece:
        """Return a whole tensor of a file as a piece; a slice of a wider matrix has one segment per row."""
        row, offset = math.prod(stored.shape[1:]), stored.offset
        if stored.stride == contiguous_stride(stored.shape):
            places = [(offset, math.prod(stored.shape))]
        elif _is_slice(stored) and stored.stride[0] >= row:
            step = stored.stride[0] * stored.dtype.itemsize
            places = [(offset + index * step, row) for index in range(stored.shape[0])]
        else:
            raise UserError(
                f"{stored.key} in {stored.path} is not stored row by row (strides {list(stored.stride)}); "
                "make it contiguous and save the file again"
            )
        segments = tuple(Segment(stored.path, stored.key, *place) for place in places)
        return cls(stored.dtype, stored.shape, segments)

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((segment.count for segment in self.segments), initial=0))

    @property
    def count(self) -> int:
        """The number of elements in all segments."""
        return self._starts[-1]

    def cut(self, start: int, shape: tuple[int, ...]) -> Piece:
        """Return the tensor of `shape` whose elements begin at element `start` of this one."""
        segments, missing = [], math.prod(shape)
        index = bisect_right(self._starts, start) - 1
        while missing:
            segment, skipped = self.segments[index], start - self._starts[index]
            taken = min(missing, segment.count - skipped)
            segments.append(replace(segment, offset=segment.offset + skipped * self.dtype.itemsize, count=taken))
            start, missing, index = start + taken, missing - taken, index + 1
        return Piece(self.dtype, shape, tuple(segments))

    def rows(self, start: int, count: int) -> Piece:
        """Return the rows `start` to `start + count`."""
        return self.cut(start * math.prod(self.shape[1:]), (count, *self.shape[1:]))


def _is_slice(stored: Stored) -> bool:
    return stored.stride[1:] == contiguous_stride(stored.shape[1:]) and stored.shape[0] <= MOST_ROWS
