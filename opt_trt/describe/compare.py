"""Compare two checkpoints as whole models: by their values, whatever their ranks and packing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opt_trt.checkpoint.reader import lacks_target_sm, read_config
from opt_trt.checkpoint.whole_model import WholeModel
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.describe.measurement import Difference, compare_tensors, highest
from opt_trt.describe.table import aligned, collapsed
from opt_trt.errors import CheckFailed, UserError
from opt_trt.host.progress import byte_bar

# Keys that say for which ranks and which GPU a checkpoint was cut and packed.
LAYOUT = ("pp_layers", "target_sm", "use_parallel_embedding", "embedding_sharding_dim")
COLUMNS = ("tensor", "A", "B", "largest |A - B|", "relative rms")
NOTE = "relative rms: of A - B, over that of A; quantized weights are dequantized first"


@dataclass(frozen=True)
class TensorRow:
    """A tensor that differs: its form in both checkpoints, and the difference of its values if the shapes are equal."""

    name: str
    sides: tuple[str, str]
    values: Difference | None


def compare(a: Path, b: Path, config: DescribeConfig) -> None:
    """Print the differences; `CheckFailed` if there are any beside the layout."""
    models = _open(a, b, config.packed_sm)
    keys = config_differences(models[0].config.to_dict(), models[1].config.to_dict())
    names = list(dict.fromkeys((*models[0].shapes, *models[1].shapes)))
    with byte_bar("compare", sum(_nbytes(models[0], name) for name in names), config.talks) as bar:
        rows = []
        for name in names:
            rows += _rows(name, models)
            bar.update(_nbytes(models[0], name))
    if config.json:
        print(json.dumps({"a": str(a), "b": str(b)} | _values(keys, rows), indent=2, allow_nan=False))
    else:
        print("\n".join(_lines((a, b), keys, rows, config.every_layer)))
    others = [key for key in keys if not is_layout(key)]
    if others or rows:
        raise CheckFailed(f"{a} and {b} differ in {_verdict(others, rows, names)}")
    if not config.json:
        equal = "the same model in another layout" if keys else "the same configuration"
        print(f"{a} and {b} are equal: {equal}, the same values in {_count(names, 'tensor')}")


def _open(a: Path, b: Path, packed_sm: int | None) -> tuple[WholeModel, WholeModel]:
    """Open both; `packed_sm` is for those that do not say for which GPU they are packed, and one must be such."""
    unnamed = [directory for directory in (a, b) if packed_sm is not None and lacks_target_sm(read_config(directory))]
    if packed_sm is not None and not unnamed:
        raise UserError(f"neither {a} nor {b} needs a GPU to be named; drop --packed_sm {packed_sm}")
    first, second = (WholeModel(directory, packed_sm if directory in unnamed else None) for directory in (a, b))
    return first, second


def is_layout(key: str) -> bool:
    """Return whether a configuration key says how a model is stored, not what it computes."""
    return key in LAYOUT or key.startswith("mapping.")


def _verdict(keys: list[str], rows: list[TensorRow], names: list[str]) -> str:
    tensors = f"{len(rows)} of {_count(names, 'tensor')}"
    if not rows:
        return f"{_count(keys, 'config key')}, in none of {_count(names, 'tensor')}"
    return f"{_count(keys, 'config key')} and {tensors}" if keys else tensors


def config_differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys with different values, and both values; a nested key is written `quantization.quant_algo`."""
    left, right = dict(_flat(a)), dict(_flat(b))
    pairs = {key: (left.get(key), right.get(key)) for key in dict.fromkeys((*left, *right))}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _rows(name: str, models: tuple[WholeModel, WholeModel]) -> list[TensorRow]:
    """Return a list with the row of a tensor that differs; an empty list if it does not."""
    shapes = tuple(model.shapes.get(name) for model in models)
    forms = [model.stored_as(name) for model in models]
    if shapes[0] != shapes[1]:
        sides = [f"{form} {list(shape)}" if shape else "-" for form, shape in zip(forms, shapes, strict=True)]
        return [TensorRow(name, (sides[0], sides[1]), None)]
    found = compare_tensors(models[0].tensor(name), models[1].tensor(name))
    same = forms[0] == forms[1] and found.largest == 0
    return [] if same else [TensorRow(name, (forms[0], forms[1]), found)]


def _nbytes(model: WholeModel, name: str) -> int:
    itemsize: int = getattr(torch, model.config.dtype).itemsize
    return math.prod(model.shapes.get(name, (0,))) * itemsize


def _lines(
    directories: tuple[Path, Path], keys: dict[str, tuple[Any, Any]], rows: list[TensorRow], every_layer: bool
) -> list[str]:
    lines = [f"A  {directories[0]}", f"B  {directories[1]}", ""]
    if keys:
        table = [(key, *map(_text, pair)) for key, pair in keys.items()]
        lines += [*aligned(("config", "A", "B"), table, left=3), ""]
    if rows:
        by_line = {row.name: [row] for row in rows}
        if not every_layer:
            by_line = collapsed(rows, lambda row: row.name, lambda row: row.sides)
        table = [(name, *line[0].sides, *_cells(line)) for name, line in by_line.items()]
        lines += [*aligned(COLUMNS, table, left=3), "", NOTE]
    return lines


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cells(line: list[TensorRow]) -> list[str]:
    """Return the largest numbers of the tensors on a line."""
    values = [row.values for row in line if row.values is not None]
    if not values:
        return ["", ""]
    columns = zip(*((v.largest, v.rms) for v in values), strict=True)
    return [f"{highest(list(column)):.4g}" for column in columns]


def _values(keys: dict[str, tuple[Any, Any]], rows: list[TensorRow]) -> dict[str, Any]:
    return {
        "equal": not rows and all(map(is_layout, keys)),
        "config": {key: {"a": pair[0], "b": pair[1]} for key, pair in keys.items()},
        "tensors": [
            {"name": row.name, "a": row.sides[0], "b": row.sides[1]} | (row.values.to_json() if row.values else {})
            for row in rows
        ],
    }


def _count(things: Any, what: str) -> str:
    return f"{len(things)} {what}{'s' * (len(things) != 1)}"
