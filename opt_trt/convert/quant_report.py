"""How far quantized weights are from what they stand for: per matrix and rank, as JSON and as a picture.

Error and cosine are summed up block by block where a weight is quantized, so nothing is read or held twice. The values
are those a reader gets: integers times the scale as it is stored.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from opt_trt.convert.heatmap import Cell, Heatmap, Row, draw
from opt_trt.errors import UserError
from opt_trt.host.atomic import replace_text
from opt_trt.quant.mode import QuantMode


@dataclass(frozen=True, order=True)
class Shard:
    """A rank's part of a linear; layers are counted over the whole model."""

    matrix: str
    tp_rank: int
    layer: int
    rank: int

    def __str__(self) -> str:
        return f"layer {self.layer} {self.matrix}, rank {self.rank}"


@dataclass(frozen=True)
class Distance:
    """Of a weight W and the values Q it became: |W - Q| / |W| in Frobenius norms, and the cosine of the two."""

    relative_error: float
    cosine: float


class QuantReport:
    """Collects the distances of all shards; threads may add to different shards side by side."""

    def __init__(self, mode: QuantMode) -> None:
        self.mode = mode
        self._sums: dict[Shard, torch.Tensor] = {}

    def add(self, shard: Shard, weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
        """Count some output features of a shard: its weight `[rows, in]` and what it was quantized to."""
        w, restored = weight.double(), self.mode.dequantize(q, scale).double()
        sums = torch.stack(
            [(w - restored).square().sum(), w.square().sum(), restored.square().sum(), (w * restored).sum()]
        )
        self._sums[shard] = self._sums.get(shard, 0) + sums

    def distances(self) -> dict[Shard, Distance]:
        """Every shard's distance, in the order of the model. A weight of zeros is met exactly."""
        shards = sorted(self._sums, key=lambda shard: (shard.layer, shard.rank))
        return {shard: _distance(*self._sums[shard].tolist()) for shard in shards}


def _distance(error: float, weight: float, restored: float, product: float) -> Distance:
    if not weight:
        return Distance(0.0, 1.0)
    return Distance(math.sqrt(error / weight), product / math.sqrt(weight * restored) if restored else 0.0)


def report_paths(path: str, output_dir: str) -> tuple[Path, Path]:
    """The JSON file and the picture `--report` asks for; `UserError` where they cannot be written."""
    if not path:
        raise UserError("--report must be a directory or a file's name that ends in .json, found an empty one")
    given = Path(path)
    table = given if given.suffix == ".json" else given / "report.json"
    if Path(os.path.realpath(table)).is_relative_to(os.path.realpath(output_dir)):
        raise UserError(
            f"--report {path} is inside --output_dir {output_dir}, which holds the checkpoint alone; move it"
        )
    above = next(p for p in Path(os.path.realpath(table)).parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK) or table.is_dir():
        raise UserError(f"--report {path} cannot be written: {above} is no directory to write to; give another path")
    return table, table.with_suffix(".svg")


def write_report(report: QuantReport, paths: tuple[Path, Path], about: dict[str, Any]) -> str:
    """Write both files; one line for the console. `about` says what was quantized; it is stored with the numbers."""
    distances = report.distances()
    worst = max(distances, key=lambda shard: distances[shard].relative_error)
    mean = sum(d.relative_error for d in distances.values()) / len(distances)
    values = about | {
        "relative_error": "norm of W - dequantized over norm of W (Frobenius)",
        "mean_relative_error": mean,
        "worst": asdict(worst) | asdict(distances[worst]),
        "tensors": [asdict(shard) | asdict(distance) for shard, distance in distances.items()],
    }
    table, picture = paths
    table.parent.mkdir(parents=True, exist_ok=True)
    replace_text(table, json.dumps(values, indent=1, allow_nan=False) + "\n")
    replace_text(picture, draw(_picture(distances, about)))
    most = distances[worst].relative_error
    return f"report {table}, {picture}: relative error {mean:.3%} on average, {most:.3%} at worst ({worst})"


def _picture(distances: dict[Shard, Distance], about: dict[str, Any]) -> Heatmap:
    rows: dict[tuple[str, int], dict[int, Shard]] = {}
    for shard in distances:
        rows.setdefault((shard.matrix, shard.tp_rank), {})[shard.layer] = shard
    matrices = list(dict.fromkeys(matrix for matrix, _ in rows))
    ordered = sorted(rows, key=lambda row: (matrices.index(row[0]), row[1]))
    facts = {name: value for name, value in about.items() if name != "model" and value not in (None, False)}
    return Heatmap(
        title=f"Quantization error of {about['model']}",
        subtitle=", ".join(name if value is True else f"{name} {value}" for name, value in facts.items()),
        unit="relative error, %",
        columns="layer",
        remarks=("mean", "worst", "least cosine"),
        rows=[
            _row(matrix, part if about["tp_size"] > 1 else None, {s: distances[s] for s in rows[matrix, part].values()})
            for matrix, part in ordered
        ],
    )


def _row(matrix: str, part: int | None, distances: dict[Shard, Distance]) -> Row:
    errors = [100 * distance.relative_error for distance in distances.values()]
    cells = [
        Cell(error, f"{error:#.3g}", f"{shard}: relative error {error:.4g} %, cosine {distance.cosine:.7f}")
        for error, (shard, distance) in zip(errors, distances.items(), strict=True)
    ]
    least = min(distance.cosine for distance in distances.values())
    remarks = f"{sum(errors) / len(errors):#.3g} %", f"{max(errors):#.3g} %", f"{least:.6f}"
    return Row(matrix if part is None else f"{matrix}, part {part}", matrix, cells, remarks)
