"""The named tensors of every model-parallel part; its files hold them by name or inside flat vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from opt_trt.errors import UserError
from opt_trt.sources.metaseq.agreement import refuse_copies
from opt_trt.sources.metaseq.flat import find_layout, unflatten
from opt_trt.sources.metaseq.grid import list_grid
from opt_trt.sources.metaseq.pieces import Piece
from opt_trt.sources.metaseq.pt_file import FLAT, PtFile, read_pt_file

DISTINCT = ("decoder.embed_tokens.weight", FLAT)  # tensors that differ in every file: its part of the vocabulary


def read_grid(directory: Path) -> list[list[PtFile]]:
    """Read the tables of all files, as `grid[part][shard]`; a progress bar counts the files."""
    paths = list_grid(directory)
    bar = tqdm(total=len(paths) * len(paths[0]), desc="open", unit="file", disable=None, delay=2, leave=False)
    with bar:
        return [[_read(path, bar) for path in row] for row in paths]


def _read(path: Path, bar: tqdm) -> PtFile:
    file = read_pt_file(path)
    bar.update()
    return file


def named_parts(grid: list[list[PtFile]], settings: dict[str, Any]) -> list[dict[str, Piece]]:
    """Return the tensors of each part; `settings` are stated hyper-parameters, for vectors without metadata."""
    first, shards = grid[0][0], len(grid[0])
    for row in grid:
        for file in row:
            _check_kind(first, file, shards)
    for files in (*grid, [row[0] for row in grid]):  # the vectors of each part begin with other values
        refuse_copies(Piece.of(file.tensors[key]) for file in files for key in DISTINCT if key in file.tensors)
    if not first.is_flat:
        return [{key: Piece.of(tensor) for key, tensor in file.tensors.items()} for (file,) in grid]
    layout = find_layout(first, len(grid), shards, settings)
    return [unflatten(row, layout) for row in grid]


def _check_kind(first: PtFile, file: PtFile, shards: int) -> None:
    if shards > 1 and not file.is_flat:
        raise UserError(f"{file.path} is one of {shards} shards but holds whole tensors; leave one file of each part")
    if first.is_flat or file.is_flat:
        vectors, others = (
            {key: (tensor.shape, tensor.dtype) for key, tensor in f.tensors.items() if key.endswith(FLAT)}
            for f in (first, file)
        )
        if vectors != others:
            keys = sorted(key for key in vectors.keys() | others.keys() if vectors.get(key) != others.get(key))
            raise UserError(f"{first.path} and {file.path} are of two models: {keys[0]} differs; fetch them again")
