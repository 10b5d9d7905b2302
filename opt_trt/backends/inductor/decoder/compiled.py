"""The decoders of a CPU's engine: three compiled programs, looped over memory-mapped weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from opt_trt.backends.engine import REBUILD, check_device, check_rank, read_engine_config
from opt_trt.backends.inductor.decoder.loading import load_rank
from opt_trt.backends.inductor.decoder.pipeline import gather_outputs, micro_batches, run_stage
from opt_trt.backends.inductor.decoder.rank_forward import RankForward, decoder_spec
from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.backends.inductor.decoder.step_watch import watch_of
from opt_trt.errors import UserError
from opt_trt.graph.programs import stage_programs
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ALONE
from opt_trt.plugins.collectives.links import StageLink
from opt_trt.plugins.collectives.native_group import NativeCollectives
from opt_trt.plugins.cpu.isa import processor_flags
from opt_trt.plugins.native.library import NativeLibrary
from opt_trt.step import StepInputs, StepOutputs

TIMEOUT_S = 3600.0  # longer than the longest step: a rank that takes longer is lost


class CompiledDecoder:
    """`Decoder` of a rank that runs all layers."""

    def __init__(self, forward: RankForward) -> None:
        self.forward, self.spec = forward, decoder_spec(forward)
        self._watch = watch_of(forward.config, forward.rank)

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`."""
        began = time.perf_counter()
        outputs = self.forward.run(inputs, kv_cache)
        self._watch.observe(began, time.perf_counter(), inputs)
        return self.forward.step_outputs(outputs, inputs)


class StageDecoder:
    """`Decoder` of a rank of a pipeline stage, which receives hidden states, sends them on, or both."""

    def __init__(self, forward: RankForward, link: StageLink) -> None:
        self.forward, self.spec = forward, decoder_spec(forward)
        self._link = link

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`. Rank 0 returns the step's outputs, other ranks a part of them or no rows."""
        parts = micro_batches(inputs, self.forward.stages)
        return gather_outputs(self.forward, self._link, run_stage(self.forward, self._link, parts, kv_cache), inputs)


def open_decoder(engine_dir: Path, rank: int = 0, timeout_s: float = TIMEOUT_S) -> CompiledDecoder | StageDecoder:
    """Open a rank of an engine after checking that it was built for this machine.

    The engine's plugin library is loaded first, because programs call it. If the engine has several ranks, every rank
    must call this, each in its own process of one MPI world; `timeout_s` is how long a rank waits for another within a
    step.
    """
    config = read_engine_config(engine_dir)
    mapping = config.pretrained_config.mapping
    check_device(engine_dir, config, processor_flags())
    check_rank(engine_dir, config, rank)
    library_file = engine_dir / config.plugin_library
    if not library_file.is_file():
        raise UserError(f"expected {library_file}, found nothing there; {REBUILD.format(engine=engine_dir)}")
    library = NativeLibrary(library_file.stem, library_file)
    library.operators()
    names = stage_programs(mapping, mapping.pp_rank(rank))
    model = load_rank(engine_dir, config, rank, names, place=lambda weight: weight)
    link = None if mapping.world_size == 1 else _connect(library, mapping, timeout_s)
    ops = ALONE if mapping.tp_size == 1 else NativeCollectives(library.operators(), mapping.tp_size)
    rank_logits = RankLogits(mapping, rank, config.pretrained_config.vocab_size, ops)
    if link is None or mapping.pp_size == 1:
        return CompiledDecoder(RankForward(config, model, rank_logits, rank=rank))
    return StageDecoder(RankForward(config, model, rank_logits, rank=rank, after_layer=link.progress), link)


def _connect(library: NativeLibrary, mapping: Mapping, timeout_s: float) -> StageLink:
    """Join the other ranks of the engine."""
    from opt_trt.plugins.collectives import cpu as rendezvous  # MPI starts with this import

    return rendezvous.connect(library.operators(), mapping, timeout_s)
