"""Read the rows of tensors whose pieces lie in many files, a few MiB at a time.

The pieces of a joined tensor are concatenated along its rows or its columns. This module knows nothing of models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

import torch

from opt_trt.errors import UserError
from opt_trt.sources.metaseq.pieces import Piece, Segment
from opt_trt.sources.stored import rows_per_block

OPEN_FILES = 32  # at a time, because a tensor of the 175B model lies in hundreds of its 992 files


@dataclass(frozen=True)
class JoinedTensor:
    """A tensor whose pieces are joined along `axis`; None: every piece is the whole tensor, and the first is read."""

    key: str
    pieces: tuple[Piece, ...]
    axis: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the joined tensor."""
        first = self.pieces[0].shape
        if self.axis is None:
            return first
        length = sum(piece.shape[self.axis] for piece in self.pieces)
        return (*first[: self.axis], length, *first[self.axis + 1 :])

    @property
    def dtype(self) -> torch.dtype:
        """The stored type, the same in all pieces."""
        return self.pieces[0].dtype

    @property
    def path(self) -> Path:
        """The file, or the first of several."""
        return self.pieces[0].segments[0].path

    @property
    def where(self) -> str:
        """The tensor's own name and its files, for errors."""
        others = {segment.path for piece in self.pieces for segment in piece.segments} - {self.path}
        more = f" and {len(others)} more of its files" if others else ""
        return f"{self.key} in {self.path}{more}"

    def blocks(self) -> Iterator[torch.Tensor]:
        """Yield the rows in order, some at a time; a block is valid until the next one."""
        rows = rows_per_block(self.shape)
        with OpenFiles() as files:
            if self.axis == 1 and len(self.pieces) > 1:
                yield from self._side_by_side(files, rows)
                return
            for piece in self.pieces if self.axis == 0 else self.pieces[:1]:
                yield from (files.read(part) for part in _row_blocks(piece, rows))

    def _side_by_side(self, files: OpenFiles, rows: int) -> Iterator[torch.Tensor]:
        for blocks in zip(*(_row_blocks(piece, rows) for piece in self.pieces), strict=True):
            yield torch.cat([files.read(block) for block in blocks], dim=1)


def _row_blocks(piece: Piece, rows: int) -> Iterator[Piece]:
    for start in range(0, piece.shape[0], rows):
        yield piece.rows(start, min(rows, piece.shape[0] - start))


class OpenFiles:
    """Files that are opened at the first read; the least recently read ones are closed again."""

    def __init__(self) -> None:
        self.files: OrderedDict[Path, FileIO] = OrderedDict()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for file in self.files.values():
            file.close()

    def read(self, piece: Piece) -> torch.Tensor:
        """Read all elements of a piece; `UserError` names a file that ends too early."""
        tensor = torch.empty(piece.shape, dtype=piece.dtype)
        view = tensor.view(-1).view(torch.uint8).numpy().data
        for segment in piece.segments:
            size = segment.count * piece.dtype.itemsize
            self._fill(segment, view[:size])
            view = view[size:]
        return tensor

    def _fill(self, segment: Segment, view: memoryview) -> None:
        file = self._open(segment.path)
        file.seek(segment.offset)
        while view:
            count = file.readinto(view)
            if not count:
                raise UserError(f"{segment.path} ends in the middle of {segment.key}; fetch the file again")
            view = view[count:]

    def _open(self, path: Path) -> FileIO:
        if path not in self.files:
            if len(self.files) == OPEN_FILES:
                self.files.popitem(last=False)[1].close()
            self.files[path] = path.open("rb", buffering=0)
        self.files.move_to_end(path)
        return self.files[path]
