"""A tensor that is merged from the parts that tensor-parallel ranks stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from opt_trt.errors import UserError
from opt_trt.sources.listed import SourceTensor


@dataclass(frozen=True)
class Merged:
    """Parts that are concatenated along `axis` 0 or 1; None: every part is the whole tensor, and all must be equal."""

    parts: tuple[SourceTensor, ...]
    axis: int | None

    def __post_init__(self) -> None:
        first = self.parts[0]
        for part in self.parts[1:]:
            if (part.dtype, part.shape) != (first.dtype, first.shape):
                raise UserError(
                    f"{part.where} is {part.dtype} {list(part.shape)}, but {first.where} is {first.dtype} "
                    f"{list(first.shape)}; parts of one model have equal types and shapes: fetch them again"
                )

    @property
    def path(self) -> Path:
        """The file of the first part."""
        return self.parts[0].path

    @property
    def where(self) -> str:
        """The tensor's own name and the file of the first part."""
        return self.parts[0].where

    @property
    def key(self) -> str:
        """The tensor's own name, the same in all parts."""
        return self.parts[0].key

    @property
    def dtype(self) -> torch.dtype:
        """The stored type."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        shape = self.parts[0].shape
        return tuple(size * len(self.parts) if axis == self.axis else size for axis, size in enumerate(shape))

    def blocks(self) -> Iterator[torch.Tensor]:
        """Yield the rows of the whole tensor in order, some at a time; a block is valid until the next one."""
        if self.axis == 0:
            for part in self.parts:
                yield from part.blocks()
            return
        for blocks in zip(*(part.blocks() for part in self.parts), strict=True):
            yield self._same(blocks) if self.axis is None else torch.cat(blocks, self.axis)

    def _same(self, blocks: tuple[torch.Tensor, ...]) -> torch.Tensor:
        for part, block in zip(self.parts, blocks, strict=True):
            if not torch.equal(block, blocks[0]):
                raise UserError(
                    f"{part.where} differs from {self.where}, but all parts of a model hold the same; fetch them again"
                )
        return blocks[0]
