"""The facts about each release of TensorRT-LLM, and where they were read; facts that a release inherits are inferred.

`facts/releases.json` lists the releases, each with the newer one it is based on; `facts/RELEASE/*.json` hold groups of
facts: a file and commit of TensorRT-LLM, `how` they are known (`read` there, or `inferred`), the facts by section and
name, and which of the base's are `removed`, `replaced` (all of a section), or were read there and are the `same`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

FACTS = Path(__file__).parent / "facts"
Facts = dict[str, Any]  # section -> name -> its values; `version` names the release


@dataclass(frozen=True)
class Source:
    """The origin of a fact: a file of TensorRT-LLM at a commit (or its age, if unrecorded), read or inferred."""

    file: str
    commit: str
    how: str
    note: str = ""


@dataclass(frozen=True)
class Release:
    """A line of releases: `1.2` stands for 1.2.0 and 1.2.1."""

    name: str
    versions: tuple[str, ...]
    facts: Facts
    sources: dict[tuple[str, str], Source]  # by section and name

    @property
    def version(self) -> str:
        """The newest version, which the double reports as its own."""
        return self.versions[-1]


def releases() -> tuple[str, ...]:
    """Return the names of all lines of releases, newest first."""
    return tuple(json.loads((FACTS / "releases.json").read_text()))


def base_of(name: str) -> str | None:
    """Return the newer line of releases that a line is based on."""
    base: str | None = json.loads((FACTS / "releases.json").read_text())[name]["base"]
    return base


@cache
def _read(name: str) -> Release:
    entry = json.loads((FACTS / "releases.json").read_text())[name]
    facts: Facts = {}
    sources: dict[tuple[str, str], Source] = {}
    if entry["base"]:
        base = _read(entry["base"])
        facts = copy.deepcopy(base.facts)
        sources = {
            key: Source(s.file, s.commit, "inferred", s.note or f"as in {base.name}") for key, s in base.sources.items()
        }
    for path in sorted((FACTS / name).glob("*.json")):
        for group in json.loads(path.read_text()):
            _add(group, facts, sources)
    return Release(name, tuple(entry["versions"]), facts, sources)


def _add(group: dict[str, Any], facts: Facts, sources: dict[tuple[str, str], Source]) -> None:
    source = Source(group["file"], group["commit"], group["how"], group.get("note", ""))
    for section in group.get("same", ()):
        sources |= {(section, name): source for name in facts[section]}
    removed = {section: list(facts[section]) for section in group.get("replaced", ())} | group.get("removed", {})
    for section, names in removed.items():
        for name in names:
            del facts[section][name], sources[section, name]
    for section, known in group.get("facts", {}).items():
        for name, value in known.items():
            facts.setdefault(section, {})[name] = value
            sources[section, name] = source


def load(name: str) -> Release:
    """Return a line of releases; the caller may change its facts."""
    release = _read(name)
    return replace(release, facts=copy.deepcopy(release.facts) | {"version": release.version})


def own(release: Release) -> Facts:
    """Return the facts in which a release differs from the one that it is based on."""
    base = base_of(release.name)
    known = load(base).facts if base else {}
    return {
        section: {n: v for n, v in names.items() if (known.get(section) or {}).get(n) != v}
        for section, names in release.facts.items()
        if section != "version"
    }


def mutations(facts: Facts, of: Facts) -> Iterator[tuple[str, Facts]]:
    """Remove, rename and change each fact of `of` in turn; yield a description of it, and all facts after it."""
    for section, names in of.items():
        known = facts[section]
        for name, value in names.items():
            yield f"{section}.{name} removed", _with(facts, section, {n: v for n, v in known.items() if n != name})
            renamed = {(f"{n}_renamed" if n == name else n): v for n, v in known.items()}
            yield f"{section}.{name} renamed", _with(facts, section, renamed)
            for what, changed in _changes(value):
                yield f"{section}.{name}{what}", _with(facts, section, known | {name: changed})


def _with(facts: Facts, section: str, known: dict[str, Any]) -> Facts:
    return facts | {section: known}


def _changes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the value with one element changed, once for each element, with a description."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from ((f".{key}{what}", value | {key: changed}) for what, changed in _changes(inner))
        case list() if value:
            for i in range(len(value)):
                yield f"[{i}] dropped", value[:i] + value[i + 1 :]
        case bool():
            yield f" {not value}", not value
        case int():
            yield f" {value + 1}", value + 1
        case None:
            yield " 1", 1
        case _:
            yield " changed", f"{value}x"
