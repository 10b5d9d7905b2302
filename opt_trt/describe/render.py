"""Render a listing and its measurements, as tables or as JSON values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opt_trt.describe.directories import PACKED_NAMES
from opt_trt.describe.listing import Listing
from opt_trt.describe.measurement import MeasuredTensor, highest, lowest
from opt_trt.describe.table import aligned, collapsed, labelled, number_text
from opt_trt.host.disk import size_text

COLUMNS = ("tensor", "dtype", "shape", "bytes", "min", "max")
SUMMED = "a line for several layers shows the sum of their bytes and the extremes of all; --all lists each layer"
NO_TENSORS = "no tensors: TensorRT alone reads those in its engines"
PACKED = "packed weights ({}) show their integers, before per_channel_scale"


def render_text(
    directory: Path, listing: Listing, measured: Sequence[list[MeasuredTensor]], every_layer: bool
) -> list[str]:
    """Return lines of text: the header, a table per group, footnotes; `measured` has the tensors of each group."""
    total = _total(listing, sum(map(len, measured)))
    lines = [f"{listing.kind} {directory}", "", *labelled(listing.header | {"listed": total})]
    shared = False
    for group, tensors in zip(listing.groups, measured, strict=True):
        rows = _rows(tensors, every_layer)
        shared = shared or len(rows) < len(tensors)
        hashed = ("sha256",) * (tensors[0].sha256 is not None)
        lines += ["", f"{group.title}: {size_text(group.nbytes)}", ""]
        lines += aligned((*COLUMNS, *hashed), rows, left=3)
    return [*lines, *_footnotes(listing, shared)]


def render_json(directory: Path, listing: Listing, measured: Sequence[list[MeasuredTensor]]) -> dict[str, Any]:
    """Return JSON values, with an entry for every tensor; an extreme that is not finite is null."""
    return {
        "kind": listing.kind,
        "directory": str(directory),
        "config": listing.config,
        "bytes": listing.nbytes,
        "parts": [
            {"title": group.title, "rank": group.rank, "bytes": group.nbytes}
            | {"tensors": [_tensor_values(tensor) for tensor in tensors]}
            for group, tensors in zip(listing.groups, measured, strict=True)
        ],
    }


def _total(listing: Listing, count: int) -> str:
    """Return how much is listed, in bytes once and, if it is much, in a larger unit."""
    if not listing.groups:
        return NO_TENSORS
    about, exact = size_text(listing.nbytes), f"{listing.nbytes:,} bytes"
    return f"{count} tensors, {exact if about.endswith(' bytes') else f'{about} ({exact})'}"


def _rows(measured: Sequence[MeasuredTensor], every_layer: bool) -> list[Sequence[str]]:
    if every_layer:
        lines = {tensor.entry.name: [tensor] for tensor in measured}
    else:
        lines = collapsed(measured, lambda m: m.entry.name, lambda m: (m.entry.dtype, m.entry.shape))
    return [_row(name, line) for name, line in lines.items()]


def _row(name: str, line: list[MeasuredTensor]) -> Sequence[str]:
    entry = line[0].entry
    nbytes = sum(tensor.entry.nbytes for tensor in line)
    low, high = lowest([tensor.low for tensor in line]), highest([tensor.high for tensor in line])
    hashed = (line[0].sha256,) if line[0].sha256 is not None else ()
    return (name, entry.dtype, str(list(entry.shape)), f"{nbytes:,}", number_text(low), number_text(high), *hashed)


def _footnotes(listing: Listing, shared: bool) -> list[str]:
    packed = {entry.packed_bits: None for group in listing.groups for entry in group.entries if entry.packed_bits}
    names = ", ".join(PACKED_NAMES[bits] for bits in packed)
    notes = [SUMMED] * shared + [PACKED.format(names)] * bool(packed)
    return ["", *notes] if notes else []


def _tensor_values(tensor: MeasuredTensor) -> dict[str, Any]:
    entry = tensor.entry
    low, high = (value if math.isfinite(value) else None for value in (tensor.low, tensor.high))
    values = {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape), "bytes": entry.nbytes}
    return values | {"min": low, "max": high} | ({"sha256": tensor.sha256} if tensor.sha256 else {})
