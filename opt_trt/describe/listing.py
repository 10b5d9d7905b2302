"""What a directory holds, before a byte of it is read: a header and the tensors of each of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

BLOCK_ELEMENTS = 1 << 18  # looked at together: the steps in between stay in the processor's cache


@dataclass(frozen=True)
class Entry:
    """A tensor still in its file; `blocks` gives its values in row-major order, as stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    blocks: Callable[[], Iterator[torch.Tensor]]
    packed_bits: int | None = None  # of the integers in a packed weight


@dataclass(frozen=True)
class Group:
    """The tensors of one rank or file."""

    title: str
    entries: tuple[Entry, ...]
    rank: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(entry.nbytes for entry in self.entries)


@dataclass(frozen=True)
class Listing:
    """A directory: what kind it is, what there is to say of it as a whole, its tensors."""

    kind: str
    header: dict[str, str]
    config: dict[str, Any]
    groups: tuple[Group, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(group.nbytes for group in self.groups)


def blocks_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor's values in row-major order, some at a time."""
    yield from torch.split(tensor.flatten(), BLOCK_ELEMENTS)


def dtype_name(dtype: torch.dtype) -> str:
    """`float16`, as configurations spell it."""
    return str(dtype).removeprefix("torch.")
