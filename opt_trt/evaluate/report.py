"""Write the scores as a table for people and as JSON for programs, and the summaries as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opt_trt.evaluate.scores import Scores
from opt_trt.host.atomic import replace_text


@dataclass(frozen=True)
class TableRow:
    """A line of the table: its value, its digits, and whether models are compared by ratio or by difference."""

    label: str
    key: str
    digits: int
    ratio: bool = False


ROWS = (
    TableRow("ROUGE-1", "rouge1", 2),
    TableRow("ROUGE-2", "rouge2", 2),
    TableRow("ROUGE-L", "rougeL", 2),
    TableRow("ROUGE-Lsum", "rougeLsum", 2),
    TableRow("ROUGE-1 mean", "rouge1_mean", 2),
    TableRow("ROUGE-2 mean", "rouge2_mean", 2),
    TableRow("ROUGE-L mean", "rougeL_mean", 2),
    TableRow("ROUGE-Lsum mean", "rougeLsum_mean", 2),
    TableRow("ROUGE-1 95 % low", "rouge1_low", 2),
    TableRow("ROUGE-1 95 % high", "rouge1_high", 2),
    TableRow("perplexity", "perplexity", 4),
    TableRow("latency, s", "latency_s", 3, ratio=True),
    TableRow("output tokens", "output_tokens", 0, ratio=True),
    TableRow("tokens/s", "tokens_per_s", 2, ratio=True),
    TableRow("summaries/s", "summaries_per_s", 3, ratio=True),
)

SHORT = {"hf": "HF"}  # names in the headings of columns that compare


@dataclass(frozen=True)
class Report:
    """Everything that was measured, by the names of models (`hf`, `engine`): the first is compared with the others."""

    scores: dict[str, Scores]
    indices: tuple[int, ...]  # place of each summarized row in the shuffled dataset
    settings: dict[str, Any]

    def table(self) -> str:
        """Return the table as aligned text: a column per model, then a column per comparison with the first model."""
        models = list(self.scores.values())
        first, others = self._first, self._others
        shown = [row for row in ROWS if row.key in models[0].values]
        lines = [["", *(m.title for m in models), *(f"{name} vs {SHORT.get(first, first)}" for name in others)]]
        for row in shown:
            values = [m.values[row.key] for m in models]
            compared = [_compare(row, values[0], value) for value in values[1:]]
            lines.append([row.label, *(f"{v:.{row.digits}f}" for v in values), *compared])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
        return "\n".join([text[0].rstrip(), "-" * len(text[0]), *text[1:], *self._footnotes()])

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of the table, unrounded; null stands for numbers that are not finite."""
        values: dict[str, Any] = {"rows": len(self.indices), "settings": _finite(self.settings)}
        values |= {name: _finite(scores.values) for name, scores in self.scores.items()}
        for name in self._others:
            values[f"{name}_vs_{self._first}"] = self._comparisons(name)
        return values

    @property
    def _first(self) -> str:
        return next(iter(self.scores))

    @property
    def _others(self) -> list[str]:
        return list(self.scores)[1:]

    def _comparisons(self, name: str) -> dict[str, Any]:
        first, other = self.scores[self._first].values, self.scores[name].values
        compared = {
            f"{row.key}_{'ratio' if row.ratio else 'difference'}": _comparison(row, first[row.key], other[row.key])
            for row in ROWS
            if row.key in first
        }
        return _finite(compared) | {"identical_summaries": self._identical(name)}

    def _footnotes(self) -> list[str]:
        articles = "article" if len(self.indices) == 1 else "articles"
        notes = [f"{len(self.indices)} {articles}; ROUGE as TensorRT-LLM's metric (bootstrap median), in percent"]
        if self._others:
            counts = ", ".join(f"{self._identical(name)} ({name})" for name in self._others)
            notes.append(f"{len(self.indices)} summaries, identical with {self.scores[self._first].title}'s: {counts}")
        return notes

    def _identical(self, name: str) -> int:
        pairs = zip(self.scores[self._first].summaries, self.scores[name].summaries, strict=True)
        return sum(a == b for a, b in pairs)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write strict JSON; the file appears only when it is whole."""
    replace_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_summaries(path: Path, header: Sequence[str], indices: Sequence[int], summaries: Sequence[str]) -> None:
    """Write upstream's `.out` layout: the header lines, and `[index] [Beam 0] text` for every row of every batch."""
    rows = [f"[{index}] [Beam 0] {text}" for index, text in zip(indices, summaries, strict=True)]
    replace_text(path, "".join(f"{line}\n" for line in (*header, *rows)))


def _comparison(row: TableRow, reference: float, engine: float) -> float:
    if row.ratio:
        return engine / reference if reference else math.nan
    return engine - reference


def _compare(row: TableRow, reference: float, engine: float) -> str:
    value = _comparison(row, reference, engine)
    return f"{value:.2f}x" if row.ratio else f"{value:+.{row.digits}f}"


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
