"""Write the facts down for people: `python -m tests.trtllm._docs` renews docs/tensorrt_llm_facts.md and two tables
of docs/tensorrt_llm.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from opt_trt.backends.trtllm.builder_flags import WORDS, Word
from opt_trt.backends.trtllm.release import NEWEST, OLDEST
from tests.trtllm._facts import Facts, Release, Source, base_of, load, releases

DOCS = Path(__file__).parents[2] / "docs"
PAGE, GUIDE = DOCS / "tensorrt_llm_facts.md", DOCS / "tensorrt_llm.md"
INTRODUCTION = """# What is known of TensorRT-LLM, release by release

`python -m tests.trtllm._docs` writes this page from `tests/trtllm/facts/`. The tests make their stand-in for
`tensorrt_llm` from the same facts. Every fact was either `read` or `inferred`. A fact that was `read` names
its file and commit. The file may be a fork's. Where no commit was recorded, the file was a copy, and its
content shows of which release it is. A release that is based on a newer one lists only what differs from that
release. What the two share is inferred, unless it was read for the older release too. Nothing here was run.
[tensorrt_llm.md](tensorrt_llm.md) says what was tried, and how.
"""


def render() -> str:
    """Return the whole page."""
    return INTRODUCTION + "".join("\n" + section(release, release.facts) for release in map(load, releases()))


def tables(guide: str) -> str:
    """Return the guide with new tables; each stands between a comment with its name and `<!-- end -->`."""
    for name, rows in (("words", _words()), ("verified", _verified())):
        table = "\n".join(rows)
        guide = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\n\g<2>", guide, flags=re.DOTALL)
    return guide


def _words() -> list[str]:
    rows = ["| ours | the builder's | releases |", "|---|---|---|"]
    for word in WORDS:
        ours = {"kv_cache": "kv_cache_type"}.get(word.setting, word.setting)
        rows.append(f"| `--{ours}` | `--{word.flag}` | {_span(word)} |")
    return rows


def _span(word: Word) -> str:
    """Format the releases that have a flag."""
    if word.until == NEWEST:
        return "all" if word.since == OLDEST else f"{word.since} on"
    return str(word.since) if word.since == word.until else f"{word.since} to {word.until}"


def _verified() -> list[str]:
    rows = ["| release | stands for | read | inferred | built by the stand-in | run |", "|---|---|--:|--:|---|---|"]
    for release in map(load, releases()):
        read, inferred = (sum(s.how == how for s in release.sources.values()) for how in ("read", "inferred"))
        rows.append(f"| {release.name} | {', '.join(release.versions)} | {read} | {inferred} | yes | no |")
    return rows


def section(release: Release, facts: Facts) -> str:
    """Format the facts of a release: all of them, or those that differ from the release that it is based on."""
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
    """Format a table of the facts that differ from those of the release it is based on."""
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
    GUIDE.write_text(tables(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
