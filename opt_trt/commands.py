"""The commands: each parses its flags, then hands them to one library entry."""

from __future__ import annotations

from importlib import import_module

from opt_trt.cli import run_main
from opt_trt.config.build import BuildConfig
from opt_trt.config.convert import ConvertConfig
from opt_trt.config.describe import DescribeConfig
from opt_trt.config.export_hf import ExportConfig
from opt_trt.config.run import RunConfig
from opt_trt.config.summarize import SummarizeConfig

# Entry points by command, imported once the flags are known to be good: torch loads in seconds, --help at once.
COMMANDS: dict[str, tuple[type, str, str]] = {
    "convert": (ConvertConfig, "opt_trt.convert", "convert"),
    "build": (BuildConfig, "opt_trt.build", "build"),
    "run": (RunConfig, "opt_trt.run.run", "run"),
    "summarize": (SummarizeConfig, "opt_trt.evaluate.summarize", "summarize"),
    "describe": (DescribeConfig, "opt_trt.describe.describe", "describe"),
    "export_hf": (ExportConfig, "opt_trt.export_hf.export", "export_hf"),
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


def _command(name: str) -> None:
    config_class, module, entry = COMMANDS[name]
    run_main(lambda config: getattr(import_module(module), entry)(config), config_class)
