"""The help: groups in one order, required flags marked, defaults that say something, two examples."""

from __future__ import annotations

import re

import pytest

from opt_trt.cli.parser import build_parser
from opt_trt.commands import COMMANDS
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.flags import GROUPS
from opt_trt.config.run_flags import RunConfig
from opt_trt.version import __version__
from tests._processes import run_python

HELP = {name: build_parser(command.config_class).format_help() for name, command in COMMANDS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_groups_stand_in_one_order_and_none_is_empty(name):
    headings = re.findall(r"^(\S[^\n]*):$", HELP[name], re.MULTILINE)
    known = [GROUPS.index(heading) for heading in headings if heading in GROUPS]
    assert known == sorted(known) and len(known) >= 2 and headings[-1] == "examples"
    assert "positional arguments" not in HELP[name] and "options" not in headings


@pytest.mark.parametrize("name", COMMANDS)
def test_the_usage_is_one_line_and_defaults_say_something(name):
    usage, blank, *_ = HELP[name].splitlines()
    assert usage.startswith("usage: ") and usage.endswith(" [flags]") and blank == ""
    assert not re.search(r"default:\s+(None|False|\(|\[|'')", HELP[name])
    assert HELP[name].count("default") >= 1


@pytest.mark.parametrize(
    ("name", "heading", "first"),
    [("summarize", "input", "--engine_dir DIR"), ("run", "input", "--engine_dir DIR"), ("describe", "input", "DIR ")],
)
def test_a_group_begins_with_the_first_flag_that_its_command_declares(name, heading, first):
    [group] = re.findall(rf"^{heading}:\n  (.*)$", HELP[name], re.MULTILINE)
    assert group.startswith(first)


def test_required_flags_are_marked_and_come_first():
    text = build_parser(RunConfig).format_help()
    assert "--max_output_len N [flags]" in text
    assert re.search(r"\noutput:\n  --max_output_len N +most new tokens per prompt \(required\)", text)
    assert re.search(r"--checkpoint_dir DIR .*\(required\)", build_parser(BuildConfig).format_help(), re.DOTALL)


@pytest.mark.parametrize("argv", [["build.py"], ["-m", "opt_trt", "repack"], ["-m", "opt_trt.describe"]])
def test_every_command_tells_its_version(argv):
    result = run_python(*argv, "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"opt_trt {__version__}\n", "")
