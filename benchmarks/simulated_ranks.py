"""SIMULATED steps of 66B and 175B on nodes of eight H100 or H200: calculated, not measured. Nothing ran on a GPU.

A step gives each sequence of a batch one token. Activations and KV cache are fp16. The calculation counts:

    layer      the longer of (weights + KV cache of this rank) / (HBM bandwidth x share reached) and
               2 x weights x batch / (peak x share reached), plus the start of its kernels
    exchange   two all-reduces a layer of batch x hidden x 2 bytes, and one gather of logits
    stage      a message of batch x hidden x 2 bytes to the next one
    step       all stages one after another, because one batch passes through them, and the leader's plan

An all-reduce inside a node takes a latency, and sends 2 (n - 1) / n of its bytes at NVLink's rate. Over several nodes,
each node reduces its data, all ranks of a node then sum one part each with the other nodes, and each node gathers the
parts. Ranks have the numbers of `Mapping`, eight to a node. Several batches in flight would keep all stages of a
pipeline busy and give up to pp times the tokens in the same time; sessions have one batch in flight, so the calculation
ignores this.

Bandwidths and peaks are from data sheets. The shares that are reached, kernel starts and latencies are assumptions,
typical of tuned kernels and NCCL. Only the plan's time was measured, between processes of one CPU machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from opt_trt.model.mapping import Mapping

MODELS = {"66B": (9216, 64, 72), "175B": (12_288, 96, 96)}  # hidden, layers, heads
VOCABULARY = 50_272
TP_SIZES, PP_SIZES, BATCHES = (4, 8, 16), (1, 2, 3, 4), (1, 64)
CONTEXT = 1024  # tokens in the KV cache of each sequence
BYTES_EACH = {"float16": 2.0, "int8": 1.0, "int4": 0.5}  # of a weight of the layers; tables and head are fp16
FP16 = 2

GPUS_PER_NODE = 8
HBM_SHARE, PEAK_SHARE = 0.75, 0.6
MEMORY_SHARE = 0.9  # of a GPU's memory, for weights and KV cache
PEAK = 989e12  # fp16 FLOP/s, dense, H100 and H200
KERNELS_S = 12e-6  # a layer: eight kernels of a CUDA graph, 1.5 µs each
NVLINK, NVLINK_LATENCY_S = 450e9, 10e-6  # bytes/s each way of a GPU; an exchange of a few kB
NETWORK, NETWORK_LATENCY_S = 50e9, 20e-6  # InfiniBand NDR, a port for each GPU
PLAN_S = 41e-6  # measured: packed, sent to one rank, unpacked


@dataclass(frozen=True)
class SimulatedGpu:
    """The device of one rank: bandwidth of its memory in bytes/s, and its size in bytes."""

    bandwidth: float
    memory: float


GPUS = {"H100": SimulatedGpu(3.35e12, 80e9), "H200": SimulatedGpu(4.8e12, 141e9)}


@dataclass(frozen=True)
class Case:
    """A model, its precision, its ranks, and the batch of a step."""

    model: str
    precision: str
    mapping: Mapping
    batch: int

    @property
    def message(self) -> float:
        """The bytes of a message of hidden states."""
        return self.batch * MODELS[self.model][0] * FP16

    def layer_weights(self) -> float:
        """Return the number of weights of a layer on one rank."""
        return 12 * MODELS[self.model][0] ** 2 / self.mapping.tp_size

    def cache_bytes(self) -> float:
        """Return the bytes of a layer's KV cache on one rank."""
        return 2 * self.message * CONTEXT / self.mapping.tp_size

    def stage_bytes(self) -> float:
        """Return the bytes of weights and KV cache on the fullest rank, which has the table that is also the head."""
        hidden, layers, _ = MODELS[self.model]
        table = VOCABULARY * hidden * FP16 / self.mapping.tp_size
        a_layer = self.layer_weights() * BYTES_EACH[self.precision] + self.cache_bytes()
        return len(self.mapping.layers(layers, 0)) * a_layer + table


def exchange_s(case: Case, message: float) -> float:
    """Return the seconds of an all-reduce of some bytes over a tensor-parallel group."""
    ranks = case.mapping.tp_size
    inside = min(ranks, GPUS_PER_NODE)
    nodes = ranks // inside
    seconds = NVLINK_LATENCY_S + 2 * (inside - 1) / inside * message / NVLINK
    if nodes > 1:
        seconds += NETWORK_LATENCY_S + 2 * (nodes - 1) / nodes * message / inside / NETWORK
    return seconds


def send_s(case: Case, stage: int) -> float:
    """Return the seconds of a message from a stage to the next one."""
    tp_size = case.mapping.tp_size
    first = stage * tp_size
    crosses = any(rank // GPUS_PER_NODE != (rank + tp_size) // GPUS_PER_NODE for rank in range(first, first + tp_size))
    rate, latency = (NETWORK, NETWORK_LATENCY_S) if crosses else (NVLINK, NVLINK_LATENCY_S)
    return latency + case.message / rate


def step_s(case: Case, gpu: SimulatedGpu) -> float:
    """Return the seconds of a step through all stages."""
    hidden, layers, _ = MODELS[case.model]

    def products_s(weights: float, moved: float) -> float:
        return max(moved / (gpu.bandwidth * HBM_SHARE), 2 * weights * case.batch / (PEAK * PEAK_SHARE))

    head = VOCABULARY * hidden / case.mapping.tp_size
    weights = case.layer_weights()
    layer = products_s(weights, weights * BYTES_EACH[case.precision] + case.cache_bytes()) + KERNELS_S
    sent = sum(send_s(case, stage) for stage in range(case.mapping.pp_size - 1))
    # A gather moves half the bytes of an all-reduce; logits are fp32.
    gather = exchange_s(case, case.batch * VOCABULARY * 4 / 2)
    return (
        layers * (layer + 2 * exchange_s(case, case.message)) + products_s(head, head * FP16) + gather + sent + PLAN_S
    )


def simulated_table(precision: str) -> Iterator[str]:
    """Yield the lines of a table of milliseconds per step; `-` if weights and KV cache do not fit."""
    yield f"SIMULATED, not measured: ms a step, weights in {precision}, {CONTEXT} tokens of context"
    columns = [f"{name}, batch {batch}" for name in GPUS for batch in BATCHES]
    yield f"{'model':<7}{'tp':<4}{'pp':<4}{'GB a rank':<16}{''.join(f'{column:<16}' for column in columns)}".rstrip()
    for model, (_, _, heads) in MODELS.items():
        for tp_size in TP_SIZES:
            if heads % tp_size:
                yield f"{model:<7}{tp_size:<4}none: {heads} heads are not divisible by {tp_size}"
                continue
            for pp_size in PP_SIZES:
                cases = [
                    Case(model, precision, Mapping(tp_size * pp_size, tp_size, pp_size), batch) for batch in BATCHES
                ]
                sizes = " / ".join(f"{case.stage_bytes() / 1e9:.0f}" for case in cases)
                times = "".join(f"{cell(case, gpu):<16}" for gpu in GPUS.values() for case in cases)
                yield f"{model:<7}{tp_size:<4}{pp_size:<4}{sizes:<16}{times}".rstrip()


def cell(case: Case, gpu: SimulatedGpu) -> str:
    return f"{step_s(case, gpu) * 1e3:.1f}" if case.stage_bytes() < MEMORY_SHARE * gpu.memory else "-"
