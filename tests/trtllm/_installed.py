"""The flags of the package that a process would import, and how they differ from the facts of its release."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tests._processes import run_python
from tests.trtllm._builder import Parser
from tests.trtllm._facts import Facts

# `parse_arguments` parsed its arguments in old releases, and returns the parser in new ones. This serves both.
ASK = """
import argparse, json, sys
class Found(Exception):
    pass
def told(parser):
    print("FLAGS" + json.dumps({a.dest: [sorted(a.option_strings), a.default, sorted(map(str, a.choices or ()))]
                      for a in parser._actions if a.dest != "help"}, default=str))
    sys.stdout.flush()
    raise SystemExit
argparse.ArgumentParser.parse_args = lambda self, *given: told(self)
from tensorrt_llm.commands.build import parse_arguments
told(parse_arguments())
"""


def installed_flags(environment: dict[str, str]) -> dict[str, Any]:
    """Return option strings, default and choices of every flag of the builder that a process imports, by its name."""
    result = run_python("-c", ASK, environment=environment)
    line = next((line for line in result.stdout.splitlines() if line.startswith("FLAGS")), None)
    assert line is not None, result.stderr
    flags: dict[str, Any] = json.loads(line.removeprefix("FLAGS"))
    return flags


def known_flags(facts: Facts) -> dict[str, Any]:
    """Return the same as the facts have it."""
    return {
        action.dest: [sorted(action.option_strings), action.default, sorted(map(str, action.choices or ()))]
        for action in Parser(facts)._actions
        if action.dest != "help"
    }


def differences(facts: Facts, installed: dict[str, Any]) -> list[str]:
    """List the differences. Choices that only the package can list, and suppressed defaults, are not compared."""
    known = known_flags(facts)
    lines = [f"--{name} is not known" for name in installed.keys() - known.keys()]
    lines += [f"--{name} is not there" for name in known.keys() - installed.keys()]
    for name in known.keys() & installed.keys():
        for what, ours, theirs in zip(("names", "default", "choices"), known[name], installed[name], strict=True):
            unlisted = (what == "choices" and not ours) or theirs == argparse.SUPPRESS
            if ours != theirs and not unlisted:
                lines.append(f"--{name}: {what} {ours} is {theirs}")
    return sorted(lines)
