"""Measure how long each kind of operation of a step takes, and how much time passes outside of kernels.

The plugin library records when its products and attention begin and end. The time of a norm is the difference between
a gap with a norm and a gap without one.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from opt_trt.backends.engine import EngineConfig, map_weights, read_engine_config
from opt_trt.backends.inductor.decoder.compiled import open_decoder
from opt_trt.backends.inductor.decoder.rank_forward import RankForward
from opt_trt.graph.decoder import site_of
from opt_trt.plugins.native.library import NativeLibrary
from opt_trt.plugins.tune.common import gemm_problems
from opt_trt.quant.mode import SCALE
from opt_trt.step import DecoderSpec, StepInputs

CONTEXT_TOKENS = 200  # cached tokens of the one sequence
WARM_UP, MOST_STEPS, BUDGET_S = 5, 200, 2.0
KEPT = 4  # the fastest one of so many steps counts
LAYER_SITES = ("qkv", "attention", "dense", "fc", "proj")  # in the order a layer calls them
LIBRARY = "library"
Clock = tuple[int, int, int]  # ns: begin of the step, end of the embedding, end of the step
Event = Sequence[int]  # kind, begin, end in ns


@dataclass(frozen=True)
class Work:
    """The work of an operation in a step, over all layers: bytes that it must read, and fp32 operations."""

    nbytes: int
    flops: int


@dataclass(frozen=True)
class StepProfile:
    """Mean ns of the fastest generation steps of one sequence, by operation.

    Products and attention that torch's library computes are not recorded: their time counts as outside of kernels.
    """

    context_tokens: int
    steps: int
    step_ns: float
    by_operation: dict[str, float]
    calls: dict[str, int]
    work: dict[str, Work]
    page_faults: float  # a step

    @property
    def outside_ns(self) -> float:
        """The rest of the time: calls, allocations, Python."""
        return self.step_ns - sum(self.by_operation.values())


def profile_engine(engine_dir: Path) -> StepProfile:
    """Run generation steps of one sequence on an engine of one rank, and measure its operations."""
    config = read_engine_config(engine_dir)
    decoder = open_decoder(engine_dir)
    tokens = min(CONTEXT_TOKENS, config.build_config.max_seq_len)
    inputs, caches = _generation_step(decoder.spec, tokens)
    library = NativeLibrary(Path(config.plugin_library).stem, engine_dir / config.plugin_library).operators()
    for _ in range(WARM_UP):
        decoder.step(inputs, caches)
    traced, layers = traced_sites(config.tactics), decoder.spec.num_layers
    parts: list[dict[str, float]] = []
    before = _page_faults()
    end = time.perf_counter() + BUDGET_S
    while len(parts) < MOST_STEPS and (len(parts) < 3 or time.perf_counter() < end):
        parts.append(split_step(*_recorded_step(decoder.forward, library, inputs, caches), traced, layers))
    faults = _page_faults() - before
    fastest = sorted(parts, key=lambda part: part["step"])[: -(-len(parts) // KEPT)]  # others were slowed down
    means = {name: statistics.mean(part[name] for part in fastest) for name in parts[0]}
    step_ns = means.pop("step")
    return StepProfile(
        context_tokens=tokens, steps=len(fastest), step_ns=step_ns, by_operation=means,
        calls={name: layers if name in LAYER_SITES else 1 for name in means} | {"norms": 2 * layers + 1},
        work=_work(config, engine_dir, tokens), page_faults=faults / len(parts),
    )  # fmt: skip


def traced_sites(tactics: Mapping[str, Sequence[str]]) -> list[str]:
    """List the sites of a layer whose operators are the plugin's, in order."""
    return [site for site in LAYER_SITES if tactics[site][0] != LIBRARY]


def split_step(clock: Clock, events: Sequence[Event], sites: Sequence[str], layers: int) -> dict[str, float]:
    """Split the ns of a step by operation. `events` are those of the `sites` of all layers, then those of the head."""
    begin, embedded, end = clock
    durations = [event[2] - event[1] for event in events]
    parts = {"embedding": float(embedded - begin)}
    parts |= {site: float(sum(durations[i : layers * len(sites) : len(sites)])) for i, site in enumerate(sites)}
    parts["head"] = float(sum(durations[layers * len(sites) :]))
    if len(sites) == len(LAYER_SITES):
        parts["norms"] = (2 * layers + 1) * norm_ns(events[: layers * len(sites)])
    return parts | {"step": float(end - begin)}


def norm_ns(events: Sequence[Event]) -> float:
    """Return the time of the norm between dense and fc from events of whole layers; gaps before dense have no norm."""
    gaps = [later[1] - earlier[2] for earlier, later in pairwise(events)]
    count, dense = len(LAYER_SITES), LAYER_SITES.index("dense")
    return max(0.0, statistics.median(gaps[dense::count]) - statistics.median(gaps[dense - 1 :: count]))


def _generation_step(spec: DecoderSpec, tokens: int) -> tuple[StepInputs, list[torch.Tensor]]:
    """Return a step of one sequence that has so many tokens after it, and the KV cache of all layers."""
    blocks = -(-tokens // spec.tokens_per_block)
    last = torch.tensor([tokens - 1])
    inputs = StepInputs(
        input_ids=torch.tensor([spec.end_id]),
        position_ids=last,
        slot_mapping=last,
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        kv_lens=torch.tensor([tokens], dtype=torch.int32),
        block_tables=torch.arange(blocks, dtype=torch.int32)[None],
        last_token_ids=torch.tensor([0]),
    )
    return inputs, [torch.zeros(spec.kv_shape(blocks), dtype=spec.kv_dtype) for _ in range(spec.num_layers)]


def _recorded_step(
    forward: RankForward, library: Any, inputs: StepInputs, caches: Sequence[torch.Tensor]
) -> tuple[Clock, list[list[int]]]:
    """Run a step, and return its times and what the plugin library recorded."""
    events = torch.empty(len(LAYER_SITES) * len(caches) + 1, 3, dtype=torch.int64)
    library.record(events, True)
    begin = time.perf_counter_ns()
    x = forward.embed(inputs)
    embedded = time.perf_counter_ns()
    forward.head(forward.layers(x, inputs, caches), inputs)
    clock = begin, embedded, time.perf_counter_ns()
    return clock, events[: library.record(events, False)].tolist()


def _work(config: EngineConfig, engine_dir: Path, tokens: int) -> dict[str, Work]:
    """Return the work of each site: weights, scales, and keys and values of all tokens are read once."""
    model = config.pretrained_config
    layers, bytes_of = model.num_hidden_layers, dict.fromkeys((*LAYER_SITES, "head"), 0)
    for name, tensor in map_weights(engine_dir, 0).items():
        if (site := site_of(name.replace(SCALE, "weight"))) is not None:
            bytes_of[site] += tensor.nbytes
    per_token = 2 * model.local_heads * model.head_size
    bytes_of["attention"] = layers * tokens * per_token * getattr(torch, model.dtype).itemsize
    problems = gemm_problems(model)
    flops = {site: 2 * p.n * p.k * (1 if site == "head" else layers) for site, p in problems.items()}
    flops["attention"] = 2 * layers * tokens * per_token
    return {site: Work(nbytes, flops[site]) for site, nbytes in bytes_of.items()}


def _page_faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt
