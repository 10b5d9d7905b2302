"""The uncompiled graph on the plugin library: the results of a choice of tactics, without a compiler."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from opt_trt.backends.inductor.builder.cpu import choose_tactics as choose
from opt_trt.checkpoint.reader import read_config
from opt_trt.config.build_flags import BuildConfig
from opt_trt.plugins.cpu.isa import target_isa
from opt_trt.plugins.ops.cpu import PluginOps
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import Tactic, winners
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import StepInputs, StepOutputs
from tests.engine._libraries import plugin_library
from tests.unit._rank_decoder import Rank, spec_of


def tactic_plan(checkpoint: Path, timing_cache: Path, **flags: object) -> TacticPlan:
    """Return the tactics that a build would choose; the times it knows are left in `timing_cache`."""
    config = BuildConfig(checkpoint_dir=str(checkpoint), output_timing_cache=str(timing_cache), **flags)
    return choose(read_config(checkpoint), config, plugin_library(), target_isa())[0]


def choose_tactics(checkpoint: Path, timing_cache: Path, **flags: object) -> dict[str, list[str]]:
    """Return the names of the chosen tactics by site."""
    return winners(tactic_plan(checkpoint, timing_cache, **flags).choices())


def prefer(families: Sequence[Collection[Tactic]], timing_cache: Path) -> Path:
    """Write timings beside a cache by which these tactics win, later families where they are admitted."""
    wanted = {tactic.name: 1e-3 / 10**order for order, family in enumerate(families) for tactic in family}
    rows = json.loads(timing_cache.read_text())
    doctored = timing_cache.with_name("doctored.cache")
    doctored.write_text(
        json.dumps({problem: {name: wanted.get(name, 1.0) for name in row} for problem, row in rows.items()})
    )
    return doctored


@dataclass
class EagerDecoder:
    """`Decoder` of a checkpoint of one rank, with the tactics of a plan."""

    checkpoint: Path
    plan: TacticPlan

    def __post_init__(self) -> None:
        ops = PluginOps(plugin_library().operators(), self.plan)
        self._rank = Rank(self.checkpoint, 0, ops, self.plan)
        self.weights = self._rank.weights  # as an engine of the plan stores them
        positions = self._rank.config.max_position_embeddings
        limits = dict.fromkeys(("max_input_len", "max_seq_len"), positions)
        self.spec = spec_of(self._rank.config, max_batch_size=8, max_num_tokens=4 * positions, **limits)

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`."""
        joined = self._rank.run(None, inputs, kv_cache)
        return self._rank.logits.outputs(joined, inputs, None)


def eager_session(checkpoint: Path, plan: TacticPlan) -> DecoderSession:
    """Open a session over the uncompiled graph."""
    return DecoderSession(EagerDecoder(checkpoint, plan), KvCacheLimit(max_tokens=4096))
