"""Load a rank of an engine: its compiled programs, and the weights that they take."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch._C._aoti import AOTIModelPackageLoader

from opt_trt.backends.engine import PROGRAMS, REBUILD, EngineConfig, map_weights
from opt_trt.errors import UserError
from opt_trt.graph.decoder import head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS
from opt_trt.graph.programs import stage_programs
from opt_trt.host.disk import size_text
from opt_trt.host.environment import environment
from opt_trt.host.scratch import scratch_directory

WRONG_INPUTS = ("input_handles", "inputs vector size")  # in the error of a program that was given other inputs
PlaceWeight = Callable[[torch.Tensor], torch.Tensor]  # a stored weight → the weight where programs read it


class Runnable(Protocol):
    """A program."""

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """See `Program.run`."""
        ...


@dataclass(frozen=True)
class RankModel:
    """The programs of a rank by name, and its weights in the order that programs take them.

    A list of weights is empty if the rank's stage does not run their program.
    """

    programs: Mapping[str, Runnable]
    tables: list[torch.Tensor]
    layers: list[list[torch.Tensor]]
    head: list[torch.Tensor]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(weight.device for weights in (*self.layers, self.tables, self.head) for weight in weights)


def load_rank(engine_dir: Path, config: EngineConfig, rank: int, names: Sequence[str], place: PlaceWeight) -> RankModel:
    """Load the programs `names` and the weights of a rank; `UserError` names what the engine lacks."""
    try:
        programs = load_programs(engine_dir / PROGRAMS.format(rank=rank), names)
        weights = {name: place(weight) for name, weight in map_weights(engine_dir, rank).items()}
        return rank_model(dict(zip(names, programs, strict=True)), weights, config, rank)
    except (FileNotFoundError, KeyError) as error:
        raise UserError(f"{engine_dir} lacks {error}; {REBUILD.format(engine=engine_dir)}") from error


def rank_model(
    programs: Mapping[str, Runnable], weights: Mapping[str, torch.Tensor], config: EngineConfig, rank: int
) -> RankModel:
    """Sort weights, given by name, as the programs of a rank take them; `KeyError` is the first missing name."""
    model = config.pretrained_config
    stage = model.mapping.pp_rank(rank)
    kinds = stage_programs(model.mapping, stage)
    head_names = head_weight_names(model, config.build_config.lm_head_precision is not None)
    return RankModel(
        programs=programs,
        tables=[weights[name] for name in EMBEDDING_WEIGHTS if "embedding" in kinds],
        layers=[
            [weights[name] for name in layer_weight_names(model, layer)]
            for layer in range(len(model.stage_layers(stage)))
        ],
        head=[weights[name] for name in head_names if "head" in kinds],
    )


def load_programs(package: Path, names: Sequence[str]) -> list[Program]:
    """Load programs of a package, in the order of `names`."""
    return [Program(package, name) for name in names]


class Program:
    """A compiled program: one of a package."""

    def __init__(self, package: Path, name: str) -> None:
        self._package, stat = package, package.stat()
        self._loader = _load(str(package.resolve()), name, stat.st_mtime_ns, stat.st_ino)

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Run the program and return its one output.

        `inputs` are flattened, in the order that the program's module takes them. The list is empty afterwards.
        """
        try:
            return self._loader.boxed_run(inputs)[0]
        except RuntimeError as error:
            if not any(words in str(error) for words in WRONG_INPUTS):
                raise
            again = REBUILD.format(engine=self._package.parent)
            told = str(error).splitlines()[0]
            raise UserError(
                f"{self._package} and the weights beside it do not fit together ({told}); {again}"
            ) from error


@functools.cache
def _load(package: str, name: str, mtime_ns: int, inode: int) -> AOTIModelPackageLoader:
    """Load a program and keep it for the life of the process: every load and unload leaks memory mappings."""
    # Compiled code reads this once, at its first call: a wrong type or order is then an error, not a corrupted heap.
    os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
    place = _unpack_directory()
    try:
        # Not aoti_load_package: it probes the compiler for seconds to print a warning.
        with environment("TMPDIR", str(place)):
            return AOTIModelPackageLoader(package, name, True, 1, -1)
    except RuntimeError as error:
        free = shutil.disk_usage(place).free
        raise UserError(
            f"{package} cannot be loaded ({str(error).splitlines()[0]}); it unpacks to {place.parent}, "
            f"which has {size_text(free)} free: free space there, or build the engine again"
        ) from error


@functools.cache
def _unpack_directory() -> Path:
    """Return the directory where loaders unpack packages; it is removed at exit, or by a later process."""
    scratch = ExitStack()
    place = scratch.enter_context(scratch_directory(Path(tempfile.gettempdir())))
    atexit.register(scratch.close)
    return place
