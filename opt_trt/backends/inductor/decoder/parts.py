"""What the decoder of a rank is made of, as it lies in an engine directory: programs and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from opt_trt.backends.engine import PROGRAMS, REBUILD, EngineConfig, map_weights
from opt_trt.backends.inductor.decoder.loading import load_programs
from opt_trt.errors import UserError
from opt_trt.graph.decoder import head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS
from opt_trt.graph.programs import stage_programs

Place = Callable[[torch.Tensor], torch.Tensor]  # a stored weight → where programs read it


class Runnable(Protocol):
    """A program."""

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """See `Program.run`."""
        ...


@dataclass(frozen=True)
class Parts:
    """Programs by name, and their weights in the order they take them; empty where a stage does not run them."""

    programs: Mapping[str, Runnable]
    tables: list[torch.Tensor]
    layers: list[list[torch.Tensor]]
    head: list[torch.Tensor]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(weight.device for weights in (*self.layers, self.tables, self.head) for weight in weights)


def load_parts(engine_dir: Path, config: EngineConfig, rank: int, names: Sequence[str], place: Place) -> Parts:
    """The programs `names` of a rank and its weights, each put where `place` wants it; `UserError` names what lacks."""
    try:
        programs = load_programs(engine_dir / PROGRAMS.format(rank=rank), names)
        weights = {name: place(weight) for name, weight in map_weights(engine_dir, rank).items()}
        return weighted_parts(dict(zip(names, programs, strict=True)), weights, config, rank)
    except (FileNotFoundError, KeyError) as error:
        raise UserError(f"{engine_dir} lacks {error}; {REBUILD.format(engine=engine_dir)}") from error


def weighted_parts(
    programs: Mapping[str, Runnable], weights: Mapping[str, torch.Tensor], config: EngineConfig, rank: int
) -> Parts:
    """Parts of a rank from its weights by name; `KeyError` is the first that is not there."""
    model = config.pretrained_config
    stage = model.mapping.pp_rank(rank)
    kinds = stage_programs(model.mapping, stage)
    head_names = head_weight_names(model, config.build_config.lm_head_precision is not None)
    return Parts(
        programs=programs,
        tables=[weights[name] for name in EMBEDDING_WEIGHTS if "embedding" in kinds],
        layers=[
            [weights[name] for name in layer_weight_names(model, layer)]
            for layer in range(len(model.stage_layers(stage)))
        ],
        head=[weights[name] for name in head_names if "head" in kinds],
    )
