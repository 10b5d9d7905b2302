"""The contents of a directory before its values are read: a header, and the tensors of each file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

BLOCK_ELEMENTS = 1 << 18  # small enough for intermediate values to stay in the processor's cache


@dataclass(frozen=True)
class ListedTensor:
    """A tensor that is still in its file; `blocks` yields its values in row-major order, as stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    blocks: Callable[[], Iterator[torch.Tensor]]
    packed_bits: int | None = None  # bits of each integer in a packed weight


@dataclass(frozen=True)
class Group:
    """The tensors of one rank or file."""

    title: str
    entries: tuple[ListedTensor, ...]
    rank: int | None = None

    @property
    def nbytes(self) -> int:
        """The number of bytes of all its tensors."""
        return sum(entry.nbytes for entry in self.entries)


@dataclass(frozen=True)
class Listing:
    """A directory: its kind, its header, its configuration, its tensors, and files that differ from their checksums."""

    kind: str
    header: dict[str, str]
    config: dict[str, Any]
    groups: tuple[Group, ...]
    damaged: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The number of bytes of all tensors."""
        return sum(group.nbytes for group in self.groups)


def blocks_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor's values in row-major order, some at a time."""
    yield from torch.split(tensor.flatten(), BLOCK_ELEMENTS)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as in configurations: `float16`."""
    return str(dtype).removeprefix("torch.")
