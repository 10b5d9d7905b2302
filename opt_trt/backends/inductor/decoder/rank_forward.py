"""The forward pass of one rank: its programs, looped over its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from opt_trt.backends.engine import EngineConfig, engine_spec
from opt_trt.backends.inductor.decoder.loading import RankModel
from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.graph.decoder import Head
from opt_trt.graph.embedding import embedding_constants
from opt_trt.ops import ReferenceOps
from opt_trt.step import DecoderSpec, StepInputs, StepOutputs

ProgramName = Callable[[str, StepInputs], str]  # a kind, "layer" or "head", and a step → the program to run
PlaceInputs = Callable[[StepInputs], StepInputs]  # a step in the host's memory → the step where programs read it


def only_one(kind: str, _: StepInputs) -> str:
    """Name the program of a kind: an engine for a CPU has one of each."""
    return kind


def in_place(inputs: StepInputs) -> StepInputs:
    """Return a step as it is: programs of a CPU read the session's own tensors."""
    return inputs


class StageOutputs(NamedTuple):
    """The results of the last pipeline stage for a step, or for a part of it."""

    logits: torch.Tensor  # as `RankLogits.join` returns them, [L, width]
    hidden: torch.Tensor | None  # [M, E], None if no hidden states are wanted


class RankForward:
    """Embedding, layers and head of one rank; its pipeline stage may run only some of them.

    The caller owns the KV cache, and puts the tensors of a step where `place` wants them.
    """

    def __init__(
        self, config: EngineConfig, model: RankModel, rank_logits: RankLogits, *, rank: int = 0,
        program_name: ProgramName = only_one, place: PlaceInputs = in_place,
        after_layer: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Prepare the forward pass; `after_layer` lets messages to other ranks move while layers are computed."""
        self.config, self.rank, self.model, self.rank_logits = config, rank, model, rank_logits
        self.program_name, self.place, self.after_layer = program_name, place, after_layer
        sizes = config.pretrained_config
        self.hidden_size, self.stages = sizes.hidden_size, sizes.mapping.pp_size
        self._constants = embedding_constants(sizes, sizes.mapping.tp_rank(rank), str(model.device))
        self._plain_head = Head(sizes, ReferenceOps())

    def run(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StageOutputs:
        """Compute a step on a rank that runs all layers."""
        x = self.layers(self.embed(inputs), inputs, kv_cache)
        return StageOutputs(self.head(x, inputs), self.hidden(x, inputs))

    def embed(self, inputs: StepInputs) -> torch.Tensor:
        """Return the hidden states [T, E] that the first layer takes."""
        tables, constants = self.model.tables, self._constants
        return self.model.programs["embedding"].run([inputs.input_ids, inputs.position_ids, *tables, *constants])

    def layers(self, x: torch.Tensor, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        """Run the rank's layers on hidden states [T, E].

        The cache of each layer is its own tensor: Inductor loses writes to a slice that is taken inside a program.
        """
        step = (inputs.slot_mapping, inputs.query_start, inputs.kv_lens, inputs.block_tables)
        layer, after_layer = self.model.programs[self.program_name("layer", inputs)], self.after_layer
        for weights, cache in zip(self.model.layers, kv_cache, strict=True):
            x = layer.run([x, *weights, cache, *step])
            if after_layer is not None:
                after_layer()
        return x

    def head(self, x: torch.Tensor, inputs: StepInputs) -> torch.Tensor:
        """Return `RankLogits.join` of this rank's logits; no rows if the step wants no logits.

        A part of a step wants none if no prompt ends in it.
        """
        if not inputs.last_token_ids.numel():  # not len(): it is a Python function and costs 15 µs after a step
            return torch.empty(0, self.rank_logits.width(inputs), device=x.device)
        program = self.model.programs[self.program_name("head", inputs)]
        part = program.run([x, inputs.last_token_ids, *self.model.head]).float()
        return self.rank_logits.join(part, inputs)

    def hidden(self, x: torch.Tensor, inputs: StepInputs) -> torch.Tensor | None:
        """Return the normalized hidden states of the tokens that the step names, None if it names none."""
        wanted = inputs.hidden_token_ids  # few tokens: their norm needs no program of its own
        return None if wanted is None else self._plain_head.normed(x.float(), wanted, self.model.head)

    def step_outputs(self, outputs: StageOutputs, inputs: StepInputs) -> StepOutputs:
        """Turn the last stage's outputs of a whole step into the step's outputs."""
        return self.rank_logits.outputs(outputs.logits, inputs, outputs.hidden)


def decoder_spec(forward: RankForward) -> DecoderSpec:
    """Describe a rank to a session: its layers and heads, and the engine's limits."""
    model = forward.config.pretrained_config
    layers = model.stage_layers(model.mapping.pp_rank(forward.rank))
    return engine_spec(forward.config, len(layers), forward.model.device.type)
