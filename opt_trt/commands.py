"""One table of commands: each parses its flags, then hands them to one library entry."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import NoReturn

from opt_trt.cli import run_main
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.cache_flags import CacheConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.config.export_flags import ExportConfig
from opt_trt.config.flags import Logged
from opt_trt.config.repack_flags import RepackConfig
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.suggestions import did_you_mean
from opt_trt.config.summarize_flags import SummarizeConfig
from opt_trt.errors import UserError
from opt_trt.runtime.world import World, current_world
from opt_trt.runtime.world.communicator import join_world
from opt_trt.runtime.world.cores import allowed_threads, share_cores, warn_of_cut
from opt_trt.version import __version__


@dataclass(frozen=True)
class Command:
    """Flags and an entry point. The entry is imported only after the flags are checked, because torch loads slowly."""

    config_class: type
    module: str
    entry: str
    runs_engines: bool = False  # and so may run on several ranks

    def start(self, config: Logged, world: World) -> None:
        """Run the command. With several processes, rank 0 runs it, and the others compute their part of engines."""
        threads = getattr(config, "threads", None)
        warn_of_cut(threads, allowed_threads(world))
        share_cores(world, os.environ, threads)
        if world.size > 1 and not self.runs_engines:
            raise UserError(
                f"{self.entry} takes one process, {world.size} were started; run it without {world.launcher}"
            )
        if world.size > 1:
            join_world(world)
        if world.is_leader:
            for line in config.idle_flags() if config.talks else ():
                print(line, file=sys.stderr)
            getattr(import_module(self.module), self.entry)(config)
        else:
            import_module("opt_trt.backends").follow_leader(world)


@dataclass(frozen=True)
class NoFlags:
    """The configuration of `python -m opt_trt` itself."""


COMMANDS = {
    "convert": Command(ConvertConfig, "opt_trt.convert.convert", "convert"),
    "build": Command(BuildConfig, "opt_trt.backends.build", "build"),
    "run": Command(RunConfig, "opt_trt.run.run", "run", runs_engines=True),
    "summarize": Command(SummarizeConfig, "opt_trt.evaluate.summarize", "summarize", runs_engines=True),
    "describe": Command(DescribeConfig, "opt_trt.describe.describe", "describe"),
    "export_hf": Command(ExportConfig, "opt_trt.convert.export_hf", "export_hf"),
    "repack": Command(RepackConfig, "opt_trt.convert.repack", "repack"),
    "cache": Command(CacheConfig, "opt_trt.describe.cached", "cache"),
}


def main() -> NoReturn:
    """Run `python -m opt_trt COMMAND` and exit."""
    name, argv = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if (command := name.replace("-", "_")) in COMMANDS:
        run_command(command, argv)
    run_main(lambda config: _answer(name), NoFlags, [])


def _answer(name: str) -> None:
    """Print what was asked instead of a command; `UserError` if it is unknown."""
    if name not in ("--help", "-h", "--version"):
        hint = did_you_mean(name, COMMANDS) or f"known are {', '.join(COMMANDS)}"
        raise UserError(f"expected a command, found {name!r}; {hint}")
    print(f"opt_trt {__version__}" if name == "--version" else usage())


def usage() -> str:
    """Return the list of commands as `python -m opt_trt` prints it."""
    lines = [f"  {name:<12}{(command.config_class.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    return "\n".join(("usage: python -m opt_trt COMMAND [flags]; COMMAND --help lists its flags", "", *lines))


def run_command(name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit; `argv` defaults to the arguments of the process."""
    command, world = COMMANDS[name], current_world(os.environ)
    if world.is_claimed and not command.runs_engines:
        world = World()
    run_main(lambda config: command.start(config, world), command.config_class, argv)


# Entry points of the console scripts and of the scripts beside the package.
convert = partial(run_command, "convert")
build = partial(run_command, "build")
run = partial(run_command, "run")
summarize = partial(run_command, "summarize")
describe = partial(run_command, "describe")
export_hf = partial(run_command, "export_hf")
repack = partial(run_command, "repack")
cache = partial(run_command, "cache")

if __name__ == "__main__":
    main()
