"""The commands: each parses its flags, then hands them to one library entry."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module

from opt_trt.cli import run_main
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.config.export_flags import ExportConfig
from opt_trt.config.repack_flags import RepackConfig
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.summarize_flags import SummarizeConfig
from opt_trt.errors import UserError
from opt_trt.runtime.world import World, current_world
from opt_trt.runtime.world.communicator import join_world
from opt_trt.runtime.world.cores import share_cores


@dataclass(frozen=True)
class Command:
    """Flags and entry point, imported once the flags are known to be good: torch loads in seconds, --help at once."""

    config_class: type
    module: str
    entry: str
    runs_engines: bool = False  # on as many ranks as they have

    def start(self, config: object, world: World) -> None:
        """Do it; where there are several processes, rank 0 does it, and the others compute their part of engines."""
        if world.size > 1 and not self.runs_engines:
            raise UserError(f"{self.entry} takes one process, {world.size} were started; run it without mpirun")
        if world.size > 1:
            join_world(world)
        if world.is_leader:
            getattr(import_module(self.module), self.entry)(config)
        else:
            import_module("opt_trt.backends").follow_leader(world)


COMMANDS = {
    "convert": Command(ConvertConfig, "opt_trt.convert.convert", "convert"),
    "build": Command(BuildConfig, "opt_trt.backends.build", "build"),
    "run": Command(RunConfig, "opt_trt.run.run", "run", runs_engines=True),
    "summarize": Command(SummarizeConfig, "opt_trt.evaluate.summarize", "summarize", runs_engines=True),
    "describe": Command(DescribeConfig, "opt_trt.describe.describe", "describe"),
    "export_hf": Command(ExportConfig, "opt_trt.convert.export_hf", "export_hf"),
    "repack": Command(RepackConfig, "opt_trt.convert.repack", "repack"),
}


def convert() -> None:
    """`convert_checkpoint.py`: an original OPT becomes a TensorRT-LLM checkpoint."""
    _command("convert")


def build() -> None:
    """`build.py`: a checkpoint becomes an engine."""
    _command("build")


def run() -> None:
    """`run.py`: an engine generates text."""
    _command("run")


def summarize() -> None:
    """`summarize.py`: an engine's summaries are scored beside Hugging Face's."""
    _command("summarize")


def describe() -> None:
    """`python -m opt_trt.describe`: what a checkpoint or an engine holds, or what two checkpoints differ in."""
    _command("describe")


def export_hf() -> None:
    """`python -m opt_trt.export_hf`: a checkpoint becomes a Hugging Face model again."""
    _command("export_hf")


def repack() -> None:
    """`python -m opt_trt.repack`: a packed checkpoint for another GPU."""
    _command("repack")


def _command(name: str) -> None:
    command, world = COMMANDS[name], current_world(os.environ)
    share_cores(world, os.environ)
    run_main(lambda config: command.start(config, world), command.config_class)
