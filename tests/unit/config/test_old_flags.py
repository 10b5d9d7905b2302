"""Scripts written for version 0.1.0 still work: every flag of every command parses as it did then."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from opt_trt.cli import build_parser
from opt_trt.commands import COMMANDS

OLD = json.loads((Path(__file__).parents[2] / "golden" / "flags-0.1.0.json").read_text())
FLAGS = [(command, name, old) for command, of in OLD.items() for name, old in of["flags"].items()]
REFUSED = [(command, name, neutral) for command, of in OLD.items() for name, neutral in of["refused"].items()]
# Defaults that are others now, and why: what was written with the old value in mind still runs.
CHANGED = {
    ("run", "--max_input_length"): (None, "what the engine takes, which a line on stderr says of longer prompts")
}
# Flags that took one value and now take several: one is still one.
SEVERAL = {("run", "--end_id"), ("summarize", "--end_id")}


def action_of(command: str, name: str) -> argparse.Action:
    actions = build_parser(COMMANDS[command].config_class)._actions
    return next(action for action in actions if name in (action.option_strings or [action.dest]))


@pytest.mark.parametrize(("command", "name", "old"), FLAGS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_flag_keeps_its_names_its_default_and_its_choices(command, name, old):
    action = action_of(command, name)
    assert not hasattr(action, "refusal"), "it is refused now"
    assert set(old["aliases"]) <= set(action.option_strings)
    assert set(old["choices"] or ()) <= set(action.choices or ())
    default = None if action.default == argparse.SUPPRESS else action.default
    assert json.loads(json.dumps(default)) == (CHANGED.get((command, name), (old["default"], ""))[0])
    assert action.nargs == old["nargs"] or (command, name) in SEVERAL


@pytest.mark.parametrize(("command", "name", "neutral"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_flag_that_could_not_act_is_known_and_takes_what_asks_for_what_happens_anyway(command, name, neutral):
    action = action_of(command, f"--{name}")
    if refusal := getattr(action, "refusal", None):  # it may act by now
        assert set(neutral) <= set(refusal.neutral)
