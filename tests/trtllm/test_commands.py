"""The commands of NVIDIA's README for OPT run here as they stand: each parses, and each build is planned."""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from opt_trt import commands
from opt_trt.backends import build as builder
from opt_trt.backends.trtllm.builder_flags import builder_flags
from opt_trt.backends.trtllm.release import Release
from opt_trt.cli import parse
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.summarize_flags import SummarizeConfig
from opt_trt.errors import UserError
from tests.trtllm._builder import Parser
from tests.trtllm._checks import MODEL, TWO
from tests.trtllm._commands import ADDED, ADDED_0_11, BUILD, BUILD_0_10, BUILD_0_11, CONVERT, RUN, SUMMARIZE, lines
from tests.trtllm._facts import load, releases

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "convert_checkpoint.py": ConvertConfig, "trtllm-build": BuildConfig, "run.py": RunConfig,
    "summarize.py": SummarizeConfig,
}  # fmt: skip
NEWEST = [*lines(CONVERT), *lines(BUILD), *lines(SUMMARIZE), RUN]
NEWEST += [f"{line} {more}" for line in NEWEST for name, added in ADDED.items() if name in line for more in added]


def config_of(line):
    """What our command of the same name makes of the line."""
    words = shlex.split(line)
    place = next(i for i, word in enumerate(words) if word.split("/")[-1] in COMMANDS)
    return parse(COMMANDS[words[place].split("/")[-1]], words[place + 1 :])


OLDER = {
    "0.11": [*lines(BUILD_0_11), *(f"{lines(BUILD)[0]} {more}" for more in ADDED_0_11)],
    "0.10": lines(BUILD_0_10),
}


@pytest.mark.parametrize("line", [*NEWEST, *OLDER["0.11"], *OLDER["0.10"]])
def test_every_command_line_parses(line):
    config = config_of(line)
    assert getattr(config, "max_batch_size", 8) == 8
    assert getattr(config, "longest_sequence", lambda positions: 1024)(2048) == 1024


@pytest.mark.parametrize("release", releases())
@pytest.mark.parametrize("line", [line for line in NEWEST if "trtllm-build" in line])
def test_every_build_is_said_to_every_release(line, release):
    facts = load(release).facts
    config = config_of(line)
    args = Parser(facts).parse_args(builder_flags(config, MODEL, Release.parse(facts["version"])))
    assert (args.max_batch_size, args.gemm_plugin, args.workers) == (8, "float16", config.workers)
    total = args.max_input_len + args.max_output_len if release == "0.10" else args.max_seq_len
    assert total == 1024


@pytest.mark.parametrize(("release", "line"), [(release, line) for release in OLDER for line in OLDER[release]])
def test_older_command_lines_reach_their_release_unchanged(release, line):
    """Every word of them is in what the builder of that time is told."""
    facts = load(release).facts
    told = builder_flags(config_of(line), MODEL, Release.parse(facts["version"]))
    assert set(shlex.split(line)[1:]) <= set(told)


def test_older_command_lines_that_newer_releases_cannot_follow_say_what_to_do():
    with pytest.raises(
        UserError, match=r"--lookup_plugin float16: .*not 1\.2's; embedding lookup needs no plugin any more"
    ):
        builder_flags(config_of(lines(BUILD_0_11)[0]), MODEL, Release(1, 2))
    builder_flags(config_of(lines(BUILD_0_10)[0]), MODEL, Release(1, 2))  # --max_output_len


def test_the_readmes_advice_on_embedding_sharding_checks_the_checkpoint(monkeypatch):
    """It gives the builder a flag of the converter."""
    sharded = {"use_parallel_embedding": True, "mapping": TWO}
    config = config_of(lines(BUILD)[4] + " --use_parallel_embedding --embedding_sharding_dim 0")
    for model, fits in (({}, False), (sharded, True)):
        monkeypatch.setattr(builder, "read_config", lambda *_, model=model: replace(MODEL, **model))
        if fits:
            builder._read_buildable(Path("c"), config)
        else:
            with pytest.raises(UserError, match="--use_parallel_embedding: the checkpoint was converted without it"):
                builder._read_buildable(Path("c"), config)


def test_the_entry_points_are_installed_under_names_of_their_own():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    started = {name: getattr(commands, where.removeprefix("opt_trt.commands:")) for name, where in scripts.items()}
    wanted = {f"opt-trt-{name.replace('_', '-')}": (name,) for name in commands.COMMANDS}
    assert {name: start.args for name, start in started.items()} == wanted
    assert {start.func for start in started.values()} == {commands.run_command}
