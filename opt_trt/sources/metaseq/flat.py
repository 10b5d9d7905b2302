"""Find the tensors inside flat vectors, which FSDP cuts into equal shards with padding at the end of the last one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from opt_trt.errors import UserError
from opt_trt.sources.metaseq.pieces import Piece
from opt_trt.sources.metaseq.pt_file import FLAT, Layout, PtFile, read_layout
from opt_trt.sources.metaseq.sizes import PUBLISHED, Size, elements, flat_layout, with_vocabulary

PARTS = (1, 2, 4, 8, 16)  # model-parallel degrees that are tried for a hint in an error
MOST_SHARDS = 1024  # per part; with more shards, short vectors would fit any model
STATED = ("hidden_size", "num_hidden_layers", "ffn_dim")  # the sizes that determine the shapes of an OPT


def find_layout(first: PtFile, parts: int, shards: int, settings: dict[str, Any]) -> Layout:
    """Find the layout of the vectors: the one in `shard_metadata`, or that of an OPT whose lengths fit.

    `settings` are the hyper-parameters stated beside the tensors; without them, the published sizes are tried.
    """
    lengths = {key: math.prod(tensor.shape) for key, tensor in first.tensors.items() if key.endswith(FLAT)}
    if layout := read_layout(first.path):
        fits = {(parts, _shards(layout, lengths, shards)): layout}
        origin = "its shard_metadata"
    else:
        sizes = _stated(settings) or PUBLISHED
        fits = _fits(sizes, lengths, shards, (parts, *PARTS))
        origin = " or ".join(size.name for size in sizes)
    if (parts, shards) in fits:
        return fits[parts, shards]
    raise UserError(_misfit(first, (parts, shards), [place for place in fits if place[1]], origin))


def unflatten(shards: Iterable[PtFile], layout: Layout) -> dict[str, Piece]:
    """Return the tensors of one part by name; tensors beside the vectors are taken from the first shard."""
    shards = list(shards)
    pieces = {key: Piece.of(tensor) for key, tensor in shards[0].tensors.items() if not key.endswith(FLAT)}
    for key, shapes in layout.items():
        vectors = [Piece.of(shard.tensors[key]) for shard in shards]
        segments = tuple(segment for vector in vectors for segment in vector.segments)
        vector = Piece(vectors[0].dtype, (elements(shapes),), segments)
        start = 0
        for name, shape in shapes:
            pieces[name] = vector.cut(start, shape)
            start += math.prod(shape)
    return pieces


def _stated(settings: dict[str, Any]) -> tuple[Size, ...]:
    if not all(settings.get(name, 0) > 0 for name in STATED):
        return ()
    known = {name: settings[name] for name in ("max_position_embeddings",) if name in settings}
    hidden, layers, ffn = (settings[name] for name in STATED)
    vocab = settings.get("vocab_size", 0)
    return (Size(f"hidden_size {hidden} with {layers} layers", hidden, layers, 0, ffn, vocab, **known),)


def _fits(
    sizes: Iterable[Size], lengths: dict[str, int], shards: int, degrees: Iterable[int]
) -> dict[tuple[int, int], Layout]:
    """Return the layouts whose vectors have these lengths, by (parts, shards)."""
    layered = len(lengths) > 1
    fits: dict[tuple[int, int], Layout] = {}
    most = (
        len(lengths) - 1 if layered else sum(lengths.values()) * shards
    )  # layers; larger sizes cannot fit, and listing their tensors takes long
    for degree in degrees:
        for size in (size for size in sizes if size.num_hidden_layers <= most):
            if (
                not size.vocab_size and FLAT in lengths and shards <= size.hidden_size
            ):  # otherwise several vocabularies would fit
                size = with_vocabulary(size, degree, layered, lengths[FLAT] * shards)
            layout = flat_layout(size, degree, layered)
            if cuts := _shards(layout, lengths, shards):
                fits.setdefault((degree, cuts), layout)
    return fits


def _shards(layout: Layout, lengths: dict[str, int], found: int) -> int:
    """Return the number of shards that gives vectors these lengths: `found` if it fits, 0 if no number does."""
    if layout.keys() != lengths.keys() or not all(lengths.values()):
        return 0
    totals = {key: elements(shapes) for key, shapes in layout.items()}
    longest = max(totals, key=lambda key: totals[key])
    for shards in (found, -(-totals[longest] // lengths[longest])):
        if shards <= MOST_SHARDS and all(-(-total // shards) == lengths[key] for key, total in totals.items()):
            return shards
    return 0


def _misfit(first: PtFile, found: tuple[int, int], fits: list[tuple[int, int]], origin: str) -> str:
    vectors = sum(key.endswith(FLAT) for key in first.tensors)
    length = math.prod(first.tensors[FLAT].shape) if FLAT in first.tensors else 0
    what = f"flat vectors in {first.path.parent} ({vectors} a file, {FLAT} of {length} elements)"
    counted = "{} x {}".format(*found)
    if fits:
        expected = " or ".join("{} x {}".format(*fit) for fit in fits)
        return (
            f"{what} are those of {expected} files (parts x shards), found {counted}; fetch the missing files or "
            "remove the others"
        )
    return (
        f"{what} fit no known OPT in {counted} files (parts x shards): tried {origin}; fetch the files again, or put "
        "the model's config.json beside them"
    )
