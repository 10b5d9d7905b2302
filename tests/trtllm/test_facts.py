"""No fact is idle: change any one of them and a check of the backend, or the page about it, does not fit any more."""

from __future__ import annotations

import pytest

from opt_trt.backends.trtllm.builder_flags import WORDS
from opt_trt.backends.trtllm.release import Release
from tests.trtllm._checks import failing, relied_on
from tests.trtllm._docs import GUIDE, PAGE, render, section, tables
from tests.trtllm._facts import load, mutations, own, releases

# What the backend itself depends on, and what notices it whatever the page says; of flags and plugins: those it gives.
RELIED_ON = {
    **dict.fromkeys(("modules", "files", "log", "linears", "engine_config", "version_file"), ("constants",)),
    **dict.fromkeys(("tensors", "parallel_embedding"), ("checkpoints", "damage_is_refused")),
    **dict.fromkeys(("flags", "plugin_config"), ("flags_are_known", "defaults_may_be_stated", "choices_are_ours",
                                                 "translation")),
    **dict.fromkeys(("cpp_from_dir", "py_from_dir", "cpp_generate", "py_generate", "cpp_sampling", "py_sampling",
                     "cpp_outputs", "py_outputs", "cpp_behaviour", "py_behaviour", "runtime_names", "inflight_config",
                     "inflight_needs", "runner_lengths", "no_end"),
                    ("opening", "calls", "sampling", "descriptions", "sessions")),
}  # fmt: skip


def test_the_page_tells_the_facts():
    assert PAGE.read_text(encoding="utf-8") == render()
    guide = GUIDE.read_text(encoding="utf-8")
    assert tables(guide) == guide and guide.count("\n| `--") >= len(WORDS)


@pytest.mark.parametrize("name", releases())
def test_every_fact_is_read_somewhere_or_says_why_it_is_inferred(name):
    for (part, fact), source in load(name).sources.items():
        assert source.how in ("read", "inferred"), (part, fact)
        assert source.commit != "none" or source.how == "inferred", (part, fact)
        assert source.how == "read" or source.note, (part, fact)


@pytest.mark.parametrize("name", releases())
def test_any_changed_fact_is_noticed(name):
    release = load(name)
    assert failing(release.facts) is None, "what notices a change must not complain without one"
    told = section(release, release.facts)
    unnoticed = [
        what
        for what, facts in mutations(release.facts, own(release))
        if section(release, facts) == told and failing(facts) is None
    ]
    assert not unnoticed


def test_what_the_backend_relies_on_is_noticed_without_the_page():
    release = load("1.2")
    assert failing(release.facts) is None
    given = relied_on(Release(1, 2))
    of = {part: release.facts[part] for part in RELIED_ON}
    of |= {part: {n: v for n, v in release.facts[part].items() if n in given} for part in ("flags", "plugin_config")}
    changed = list(mutations(release.facts, of))
    assert len(changed) >= 250
    assert not [what for what, facts in changed if failing(facts, RELIED_ON[what.split(".")[0]]) is None]
