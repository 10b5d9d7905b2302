"""A source whose files were listed: its tensors are compared with those of the OPT, then read from their places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from opt_trt.errors import UserError
from opt_trt.sources.diagnosis import WRAPPERS, Differences, advice, unwrapped
from opt_trt.sources.opt import EMBEDDING, HEAD, POSITIONS, OptConfig, source_shapes
from opt_trt.sources.stored import TensorInfo

IGNORED = ("decoder.version",)  # a format number of early exports
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LISTED = 6  # the number of tensors of each kind that an error names


class SourceTensor(TensorInfo, Protocol):
    """A tensor that can be read, from one file or from several."""

    @property
    def path(self) -> Path:
        """The file, or the first of several."""
        ...

    @property
    def where(self) -> str:
        """The tensor's own name and its file or files, for errors."""
        ...

    def blocks(self) -> Iterator[torch.Tensor]:
        """Yield the rows in order, some at a time; a block is valid until the next one."""
        ...


@dataclass(frozen=True)
class ListedSource:
    """An OPT whose `tensors` are listed by Hugging Face's names without the `model.` prefix."""

    config: OptConfig
    tensors: Mapping[str, SourceTensor]
    notes: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Return whether the files hold this tensor."""
        return name in self.tensors

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the rows of a tensor in order, as stored, a few MiB at a time; a block is valid until the next one."""
        return self.tensors[name].blocks()

    def where(self, name: str) -> str:
        """Return the tensor's own name and its file."""
        return self.tensors[name].where


def listed_source(config: OptConfig, named: Iterable[tuple[str, SourceTensor]], directory: Path) -> ListedSource:
    """Return the source of these tensors; `UserError` names doubled, missing, unexpected and mis-shaped ones."""
    tensors: dict[str, SourceTensor] = {}
    wrapped: set[str] = set()
    for key, entry in named:
        name = unwrapped(key).removeprefix("model.")
        wrapped |= {part for part in key.split(".") if part in WRAPPERS}
        if name in tensors:
            raise UserError(f"{entry.where} and {tensors[name].where} are the same tensor; remove one")
        if name not in IGNORED:
            tensors[name] = entry
    if config.tie_word_embeddings and EMBEDDING not in tensors and HEAD in tensors:
        tensors[EMBEDDING] = tensors.pop(HEAD)  # an export keeps one of the two names of a tied table, or the other
    model = "its config.json" if (directory / "config.json").exists() else "the published OPT of this size"
    check_tensors(config, tensors, f"the weights in {directory} are not those of {model}")
    note = f"{directory}: taken off the names of tensors: {', '.join(f'{part}.' for part in sorted(wrapped))}"
    return ListedSource(config, tensors, (note,) if wrapped else ())


def join_names(names: Iterable[str]) -> str:
    """Join names for an error; cut a long list short."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def check_tensors(config: OptConfig, tensors: Mapping[str, TensorInfo], problem: str) -> None:
    """Compare tensors with the configuration; one `UserError`, which begins with `problem`, names all differences."""
    expected = source_shapes(config)
    optional = {HEAD} if config.tie_word_embeddings else set()
    missing = [name for name in expected if name not in tensors and name not in optional]
    extra = [entry.key for name, entry in tensors.items() if name not in expected]
    known = {name: entry for name, entry in tensors.items() if name in expected}
    wrong = {name: text for name, entry in known.items() if (text := _tensor_problem(entry, expected[name], name))}
    problems = {"missing": missing, "unexpected": extra, "wrong": list(wrong.values())}
    found = "; ".join(f"{kind}: {join_names(names)}" for kind, names in problems.items() if names)
    if found:
        differences = Differences(missing, extra, {name: tensors[name] for name in wrong})
        raise UserError(f"{problem}: {found}; {advice(differences)}")


def _tensor_problem(entry: TensorInfo, shape: tuple[int, ...], name: str) -> str:
    if entry.dtype not in FLOATS:
        return f"{entry.key} has dtype {entry.dtype}, expected a floating one"
    if entry.shape == shape:
        return ""
    hint = " (max_position_embeddings + 2 rows)" if name == POSITIONS else ""
    return f"{entry.key} is {list(entry.shape)}, expected {list(shape)}{hint}"
