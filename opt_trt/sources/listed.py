"""A source whose tensors were listed one by one: checked to be this OPT's, then read from where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from opt_trt.errors import UserError
from opt_trt.sources.opt import EMBEDDING, HEAD, POSITIONS, OptConfig, source_shapes
from opt_trt.sources.stored import Entry

IGNORED = ("decoder.version",)  # a format number of early exports
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LISTED = 6  # tensors an error names of each kind


class Placed(Entry, Protocol):
    """A tensor in a file, or put together from several."""

    @property
    def path(self) -> Path:
        """The file, of several the first."""
        ...

    @property
    def where(self) -> str:
        """Its spelling and its file or files, for errors."""
        ...

    def blocks(self) -> Iterator[torch.Tensor]:
        """The rows in order, some at a time; a block is valid until the next one."""
        ...


@dataclass(frozen=True)
class ListedSource:
    """An OPT whose `tensors` map Hugging Face's names, without the `model.` prefix, to their places."""

    config: OptConfig
    tensors: Mapping[str, Placed]
    notes: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether the files hold this tensor."""
        return name in self.tensors

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The rows of a tensor in order, a few MiB at a time, as stored; a block is valid until the next one."""
        return self.tensors[name].blocks()

    def where(self, name: str) -> str:
        """The tensor's spelling and its file."""
        return self.tensors[name].where


def listed_source(config: OptConfig, named: Iterable[tuple[str, Placed]], directory: Path) -> ListedSource:
    """The source of these tensors; `UserError` names whatever is doubled, missing, left over or mis-shaped."""
    tensors: dict[str, Placed] = {}
    for name, entry in named:
        if name in tensors:
            raise UserError(f"{entry.where} and {tensors[name].where} are the same tensor; remove one")
        if name not in IGNORED:
            tensors[name] = entry
    if config.tie_word_embeddings and EMBEDDING not in tensors and HEAD in tensors:
        tensors[EMBEDDING] = tensors.pop(HEAD)  # of the two names of a tied table, exports keep either
    model = "its config.json" if (directory / "config.json").exists() else "the published OPT of this size"
    check_tensors(config, tensors, f"the weights in {directory} are not those of {model}")
    return ListedSource(config, tensors)


def some(names: Iterable[str]) -> str:
    """A list of names for an error, cut where it gets long."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def check_tensors(config: OptConfig, tensors: Mapping[str, Entry], problem: str) -> None:
    """Compare what is there with what the configuration asks for; every difference in one error, after `problem`."""
    expected = source_shapes(config)
    optional = {HEAD} if config.tie_word_embeddings else set()
    missing = [name for name in expected if name not in tensors and name not in optional]
    extra = [entry.key for name, entry in tensors.items() if name not in expected]
    wrong = [_difference(entry, expected[n], n) for n, entry in tensors.items() if n in expected]
    problems = {"missing": missing, "unexpected": extra, "wrong": [text for text in wrong if text]}
    found = "; ".join(f"{kind}: {some(names)}" for kind, names in problems.items() if names)
    if found:
        raise UserError(f"{problem}: {found}; fetch them again")


def _difference(entry: Entry, shape: tuple[int, ...], name: str) -> str:
    if entry.dtype not in FLOATS:
        return f"{entry.key} has dtype {entry.dtype}, expected a floating one"
    if entry.shape == shape:
        return ""
    hint = " (max_position_embeddings + 2 rows)" if name == POSITIONS else ""
    return f"{entry.key} is {list(entry.shape)}, expected {list(shape)}{hint}"
