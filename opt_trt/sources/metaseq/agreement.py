"""Compare the tensors that must be the same in all parts, and those that must be different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from opt_trt.errors import UserError
from opt_trt.sources.metaseq.pieces import Piece
from opt_trt.sources.metaseq.reading import JoinedTensor, OpenFiles

TOLERANCE = 1e-3  # ranks of one training run may drift apart by rounding; two models differ by far more
SAMPLE = 2048  # the number of first elements by which parts are told apart


def compare_replicated(tensors: Mapping[str, JoinedTensor]) -> str:
    """Compare tensors of which every part holds a copy; return one line about the largest difference.

    `UserError` if a difference is larger than `TOLERANCE`.
    """
    largest, parts, where = 0.0, 1, ""
    for tensor in tensors.values():
        if tensor.axis is not None or len(tensor.pieces) == 1:
            continue
        parts = len(tensor.pieces)
        for part, piece in enumerate(tensor.pieces[1:], 1):
            difference = _largest_difference(tensor.pieces[0], piece)
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{tensor.key} must be the same in all parts, but part {part} ({piece.segments[0].path}) differs "
                    f"from part 0 by up to {difference:.6g}; the files are damaged or of two models: fetch them again"
                )
            if difference > largest:
                largest, where = difference, f" ({tensor.key}); part 0 is taken"
    return f"replicated tensors agree in {parts} parts, largest difference {largest:.6g}{where}" if parts > 1 else ""


def refuse_copies(pieces: Iterable[Piece]) -> None:
    """Refuse two files that begin with the same values, because one must be a renamed copy of the other."""
    seen: dict[bytes, Piece] = {}
    with OpenFiles() as files:
        for piece in pieces:
            sample = files.read(piece.cut(0, (min(SAMPLE, piece.count),)))
            if torch.equal(
                sample, sample[:1].expand_as(sample)
            ):  # all equal: padding, or layer norms in their initial state
                continue
            other = seen.setdefault(sample.view(torch.uint8).numpy().tobytes(), piece)
            if other is not piece:
                one, two = other.segments[0], piece.segments[0]
                raise UserError(
                    f"{two.path} holds the same {two.key} as {one.path}: one of them is a copy; fetch both again"
                )


def _largest_difference(one: Piece, other: Piece) -> float:
    """Return the largest absolute difference; NaN if any difference is NaN."""
    pairs = zip(*(JoinedTensor("", (piece,), None).blocks() for piece in (one, other)), strict=True)
    found = [(a.double() - b.double()).abs().max() for a, b in pairs if not torch.equal(a, b)]
    return float(torch.stack(found).max()) if found else 0.0
