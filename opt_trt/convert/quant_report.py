"""The report on quantization errors, per matrix and rank, as JSON and as a picture.

Error and cosine are added up block by block while a weight is quantized, so that nothing is read or stored twice. The
errors are those that a reader of the checkpoint gets: the integers are multiplied by the scale as it is stored.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from opt_trt.convert.heatmap import Cell, Heatmap, HeatmapRow, draw_heatmap
from opt_trt.errors import UserError
from opt_trt.host.atomic import replace_text
from opt_trt.quant.mode import QuantMode


@dataclass(frozen=True, order=True)
class Shard:
    """A rank's part of a linear; `layer` counts the layers of the whole model."""

    matrix: str
    tp_rank: int
    layer: int
    rank: int

    def __str__(self) -> str:
        return f"layer {self.layer} {self.matrix}, rank {self.rank}"


@dataclass(frozen=True)
class QuantError:
    """The error of a weight W with dequantized values Q: |W - Q| / |W| in Frobenius norms, and the cosine of both."""

    relative_error: float
    cosine: float


class QuantReport:
    """The errors of all shards; several threads may add blocks at once if each has a shard of its own."""

    def __init__(self, mode: QuantMode) -> None:
        self.mode = mode
        self._sums: dict[Shard, torch.Tensor] = {}

    def add(self, shard: Shard, weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
        """Add some output features of a shard: the weight `[rows, in]`, its integers and its scales."""
        w, restored = weight.double(), self.mode.dequantize(q, scale).double()
        sums = torch.stack(
            [(w - restored).square().sum(), w.square().sum(), restored.square().sum(), (w * restored).sum()]
        )
        self._sums[shard] = self._sums.get(shard, 0) + sums

    def errors(self) -> dict[Shard, QuantError]:
        """Return the errors of all shards, in the order of the model; a weight of zeros has error 0."""
        shards = sorted(self._sums, key=lambda shard: (shard.layer, shard.rank))
        return {shard: _quant_error(*self._sums[shard].tolist()) for shard in shards}


def _quant_error(error: float, weight: float, restored: float, product: float) -> QuantError:
    if not weight:
        return QuantError(0.0, 1.0)
    return QuantError(math.sqrt(error / weight), product / math.sqrt(weight * restored) if restored else 0.0)


def report_paths(path: str, output_dir: str) -> tuple[Path, Path]:
    """Return the paths of the JSON file and the picture for `--report`; `UserError` if they cannot be written."""
    if not path:
        raise UserError("--report must be a directory or the name of a .json file, found an empty text")
    given = Path(path)
    table = given if given.suffix == ".json" else given / "report.json"
    if Path(os.path.realpath(table)).is_relative_to(os.path.realpath(output_dir)):
        raise UserError(
            f"--report {path} is inside --output_dir {output_dir}, which may hold the checkpoint alone; move it out"
        )
    above = next(p for p in Path(os.path.realpath(table)).parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK) or table.is_dir():
        raise UserError(f"--report {path} cannot be written: {above} is no directory to write to; give another path")
    return table, table.with_suffix(".svg")


def write_report(report: QuantReport, paths: tuple[Path, Path], about: dict[str, Any]) -> str:
    """Write both files and return one line for the console; `about` describes the conversion and is stored as well."""
    errors = report.errors()
    worst = max(errors, key=lambda shard: errors[shard].relative_error)
    mean = sum(error.relative_error for error in errors.values()) / len(errors)
    values = about | {
        "relative_error": "norm of W - dequantized over norm of W (Frobenius)",
        "mean_relative_error": mean,
        "worst": asdict(worst) | asdict(errors[worst]),
        "tensors": [asdict(shard) | asdict(error) for shard, error in errors.items()],
    }
    table, picture = paths
    table.parent.mkdir(parents=True, exist_ok=True)
    replace_text(table, json.dumps(values, indent=1, allow_nan=False) + "\n")
    replace_text(picture, draw_heatmap(_picture(errors, about)))
    most = errors[worst].relative_error
    return f"report {table}, {picture}: relative error {mean:.3%} on average, {most:.3%} at worst ({worst})"


def _picture(errors: dict[Shard, QuantError], about: dict[str, Any]) -> Heatmap:
    rows: dict[tuple[str, int], dict[int, Shard]] = {}
    for shard in errors:
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
            _row(matrix, part if about["tp_size"] > 1 else None, {s: errors[s] for s in rows[matrix, part].values()})
            for matrix, part in ordered
        ],
    )


def _row(matrix: str, part: int | None, errors: dict[Shard, QuantError]) -> HeatmapRow:
    percents = [100 * error.relative_error for error in errors.values()]
    cells = [
        Cell(percent, f"{percent:#.3g}", f"{shard}: relative error {percent:.4g} %, cosine {error.cosine:.7f}")
        for percent, (shard, error) in zip(percents, errors.items(), strict=True)
    ]
    least = min(error.cosine for error in errors.values())
    remarks = f"{sum(percents) / len(percents):#.3g} %", f"{max(percents):#.3g} %", f"{least:.6f}"
    return HeatmapRow(matrix if part is None else f"{matrix}, part {part}", matrix, cells, remarks)
