"""Write the facts down for people: `python -m tests.trtllm._docs` renews docs/tensorrt_llm_facts.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.trtllm._facts import Facts, Release, Source, base_of, load, releases

PAGE = Path(__file__).parents[2] / "docs" / "tensorrt_llm_facts.md"
INTRODUCTION = """# What is known of TensorRT-LLM, release by release

Written by `python -m tests.trtllm._docs` from `tests/trtllm/facts/`, of which the tests' stand-in for `tensorrt_llm` is
made. Every fact was `read`, in the file and commit named (or a fork's, or a copy of the file whose commit was not
recorded and whose release follows from its content), or is `inferred`. A release that is based on a newer one shares
with it what is not listed; what it shares is inferred unless it was read there too. Nothing here was run. What was
tried how: [tensorrt_llm.md](tensorrt_llm.md).
"""


def render() -> str:
    """The whole page."""
    return INTRODUCTION + "".join("\n" + section(release, release.facts) for release in map(load, releases()))


def section(release: Release, facts: Facts) -> str:
    """What is said of a release whose facts are `facts`: everything, or how it differs from the one it is based on."""
    base = base_of(release.name)
    known = load(base).facts if base else {}
    lines = [f"## {release.name} ({', '.join(release.versions)})", "", _summary(release, base), ""]
    for name in sorted({*facts, *known} - {"version"}):
        lines += _table(name, facts.get(name, {}), known.get(name, {}), release)
    return "\n".join(lines).rstrip() + "\n"


def _summary(release: Release, base: str | None) -> str:
    counts = {how: sum(source.how == how for source in release.sources.values()) for how in ("read", "inferred")}
    return (f"Based on {base}. " if base else "") + f"{counts['read']} facts read, {counts['inferred']} inferred."


def _table(section: str, facts: dict[str, Any], known: dict[str, Any], release: Release) -> list[str]:
    """Rows of the facts that differ from those known already."""
    rows = [
        f"| `{name}` | {_shown(value)} | {_from(release.sources.get((section, name)))} |"
        for name, value in facts.items()
        if name not in known or known[name] != value
    ]
    gone = [f"| ~~`{name}`~~ | gone | |" for name in known if name not in facts]
    return (
        [f"**{section}**", "", "| name | what is known | from |", "|---|---|---|", *rows, *gone, ""]
        if rows + gone
        else []
    )


def _shown(value: dict[str, Any]) -> str:
    return ", ".join(f"{key} `{json.dumps(inner)}`" for key, inner in value.items()).replace("|", "\\|") or "there"


def _from(source: Source | None) -> str:
    if source is None:
        return ""
    note = f" ({source.note})" if source.note else ""
    commit = "" if source.commit == "none" else f" at {source.commit}"
    return f"{source.how}: {source.file}{commit}{note}"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
