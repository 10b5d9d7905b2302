"""Build a TensorRT engine with the builder of the installed TensorRT-LLM."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from opt_trt.backends.engine import CONFIG, PROGRAMS
from opt_trt.backends.trtllm.builder_flags import builder_flags
from opt_trt.backends.trtllm.failures import explain
from opt_trt.backends.trtllm.preflight import check
from opt_trt.backends.trtllm.process import run_builder
from opt_trt.backends.trtllm.release import NEWEST, installed_version, known_release, visible_sm
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.backend_answers import ANSWERS
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.flags import refuse_given
from opt_trt.errors import UserError, spelled

# Called by its module, because `trtllm-build` may be the user's alias of this project's command.
BUILDER = ("-m", "tensorrt_llm.commands.build")


def build(checkpoint: Checkpoint, config: BuildConfig, out: Path) -> str:
    """Let TensorRT-LLM write its engine into the empty directory `out`; a dry run prints the call instead.

    Return nothing to print: its builder has printed.
    """
    refuse_given(config, ANSWERS["tensorrt_llm"])
    version = _version(config)
    release = known_release(version)
    check(checkpoint, config, release, visible_sm())
    config = config if config.dry_run else replace(config, output_dir=str(out))
    flags = builder_flags(config, checkpoint.config, release)
    if config.dry_run:
        print(f"TensorRT-LLM {version} would build {checkpoint.config.mapping.world_size} rank(s) with")
        print(shlex.join(("python", *BUILDER, *flags)))
        return ""
    ranks = checkpoint.config.mapping.world_size
    code, lines = run_builder((sys.executable, *BUILDER, *flags), ranks, config.talks)
    wanted = [CONFIG, *(PROGRAMS.format(rank=rank) for rank in range(ranks))]
    lacking = [name for name in wanted if not (out / name).is_file()]
    if code != 0 or lacking:
        raise explain([*lines, *(f"{name} was not written" for name in lacking * (code == 0))], code, version)
    return ""


def _version(config: BuildConfig) -> str:
    """Return the version to build with: the installed one, or for a dry run the requested one."""
    installed, asked = installed_version(), config.tensorrt_llm_version
    if asked is not None and not config.dry_run and asked != installed:
        raise UserError(
            f"{spelled('tensorrt_llm_version')} {asked} shows a call with {spelled('dry_run')}, {installed} is "
            "installed; drop one of the two"
        )
    return asked or installed or str(NEWEST)
