"""The effects of in-flight batching: throughput, time between tokens, overhead, and time to a known prompt's token.

    python benchmarks/batching.py --model_shape opt-125m --dtype float16

Weights are random at real shapes. Lengths of prompts and outputs are log-normal. All requests arrive at the beginning.
"static": a batch computes all its rows until its longest request ends; only the tokens that were asked for count.
"rows leave": a request that ends leaves its batch, and no other takes its place. "in flight": the next request takes
its place. The three take turns over the same requests in one process.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # the commands set it, too

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

import torch
from models import SHAPES, random_model

from opt_trt.backends.build import build
from opt_trt.backends.inductor.decoder.compiled import open_decoder
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import Scheduling
from opt_trt.convert.convert import convert
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import Decoder, StepInputs, StepOutputs

BATCH_SIZE = 16
LONG_PROMPT, KNOWN_PROMPT = 1500, 1000  # tokens
UNLIMITED = 10**6


@dataclass
class TimedDecoder:
    """A decoder that adds up the seconds its steps take."""

    inner: Decoder
    seconds: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        self.spec = self.inner.spec

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """Run a step and add its seconds."""
        started = time.perf_counter()
        outputs = self.inner.step(inputs, kv_cache)
        self.seconds += time.perf_counter() - started
        self.steps += 1
        return outputs


def make_decoder(shape: str, dtype: str, work: Path) -> Decoder:
    """Convert and build a random model; return its decoder."""
    model = random_model(shape, work / "hf")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(work / "c"), dtype=dtype, log_level="warning"))
    build(BuildConfig(
        checkpoint_dir=str(work / "c"), output_dir=str(work / "e"), max_batch_size=BATCH_SIZE, max_input_len=1600,
        max_seq_len=2048, output_timing_cache=str(work / "model.cache"), log_level="warning",
    ))  # fmt: skip
    return open_decoder(work / "e")


def session(decoder: Decoder, scheduling: Scheduling | None = None) -> DecoderSession:
    """Return a session with a KV cache for a full batch."""
    return DecoderSession(decoder, KvCacheLimit(), scheduling)


def prompt(length: int, seed: int) -> tuple[int, ...]:
    """Return random token ids."""
    return tuple(random.Random(seed).choices(range(10, 50000), k=length))


def log_normal_requests(count: int) -> list[Request]:
    """Return requests with prompts of about 100 tokens and outputs of about 60, both with long tails."""
    chance = random.Random(0)

    def length(median: float, spread: float, most: int) -> int:
        return max(1, min(most, round(median * chance.lognormvariate(0.0, spread))))

    return [Request(prompt(length(100, 0.8, 1000), seed), length(60, 1.0, 600)) for seed in range(count)]


def generation_seconds(of: DecoderSession, *batches: Sequence[Request]) -> float:
    """Return the wall-clock time of generating all batches one after another."""
    started = time.perf_counter()
    for requests in batches:
        generate(of, requests)
    return time.perf_counter() - started


def report_throughput(decoder: Decoder, count: int, rounds: int) -> None:
    """Print tokens per second of static batches, of batches whose rows leave, and in flight; the three take turns."""
    of, requests = session(decoder), log_normal_requests(count)
    generate(of, requests[:BATCH_SIZE])
    tokens = sum(request.max_new_tokens for request in requests)
    batches = [requests[first : first + BATCH_SIZE] for first in range(0, count, BATCH_SIZE)]
    full = [[replace(r, max_new_tokens=max(b.max_new_tokens for b in batch)) for r in batch] for batch in batches]
    ways = {"static": full, "rows leave": batches, "in flight": [requests]}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, submitted in ways.items():
            rates[name].append(tokens / generation_seconds(of, *submitted))
    for name, values in rates.items():
        print(f"{name:<12}{statistics.median(values):8.1f} tokens/s  ({min(values):.1f}-{max(values):.1f})")
    for name in ("static", "rows leave"):
        ratios = [b / a for a, b in zip(rates[name], rates["in flight"], strict=True)]
        print(f"in flight / {name:<12}{statistics.median(ratios):8.2f}  ({min(ratios):.2f}-{max(ratios):.2f})")


def token_gaps(of: DecoderSession, output_len: int) -> list[float]:
    """Return the seconds between tokens while long prompts arrive at random, about one every 60 tokens."""
    chance, arrivals = random.Random(1), []
    watched = stream(of, [Request(prompt(100, seed), output_len) for seed in range(BATCH_SIZE - 2)])
    last: dict[int, float] = {}
    gaps: list[float] = []
    tokens, next_arrival = 0, chance.expovariate(1 / 60)
    for event in watched:
        now = time.perf_counter()
        if event.index in last:
            gaps.append(now - last[event.index])
        last[event.index] = now
        tokens += event.index == 0
        if tokens > next_arrival:
            arrivals.append(stream(of, [Request(prompt(LONG_PROMPT, tokens), 8)]))
            next_arrival = tokens + chance.expovariate(1 / 60)
    return gaps


def report_latency(decoder: Decoder, output_len: int) -> None:
    """Print percentiles of the time between tokens, with chunks and without."""
    for name, chunk in (("default chunks", None), ("chunks of 64", 64), ("whole prompts", UNLIMITED)):
        gaps = sorted(token_gaps(session(decoder, Scheduling(context_chunk_size=chunk)), output_len))
        p50, p99 = (gaps[int(len(gaps) * share)] * 1e3 for share in (0.5, 0.99))
        print(f"{name:<16}p50 {p50:7.1f} ms  p99 {p99:7.1f} ms  p99/p50 {p99 / p50:5.2f}  longest {gaps[-1] * 1e3:.0f}")


def report_overhead(decoder: Decoder) -> None:
    """Print the share of a step that is spent outside the decoder, at a full batch."""
    ways = {"greedy": Sampling(), "top_k 50 top_p 0.9": Sampling(top_k=50, top_p=0.9)}
    for name, sampling in ways.items():
        timed = TimedDecoder(decoder)
        of, requests = session(timed), [Request(prompt(100, s), 64, sampling=sampling) for s in range(BATCH_SIZE)]
        total = generation_seconds(of, requests)
        own = total - timed.seconds
        a_step, own_a_step = total / timed.steps * 1e3, own / timed.steps * 1e3
        print(f"{name:<20}{own_a_step:7.2f} of {a_step:.1f} ms a step are spent outside the decoder: {own / total:.1%}")


def report_reuse(decoder: Decoder, rounds: int) -> None:
    """Print the milliseconds to the first token of a prompt that was computed before."""
    medians = {}
    for reuse in (False, True):
        of = session(decoder, Scheduling(enable_block_reuse=reuse))
        known = [Request(prompt(KNOWN_PROMPT, 0), 1)]
        generate(of, known)
        medians[reuse] = statistics.median(generation_seconds(of, known) for _ in range(rounds))
    print(
        f"first token of a known prompt: {medians[False] * 1e3:.1f} ms computed, {medians[True] * 1e3:.1f} ms reused, "
        f"ratio {medians[True] / medians[False]:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float16")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--output_len", type=int, default=400, help="tokens generated while long prompts arrive")
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        decoder = make_decoder(a.model_shape, a.dtype, Path(directory))
        print(f"{a.model_shape} {a.dtype}, batch {BATCH_SIZE}, {a.requests} requests, load {os.getloadavg()[0]:.1f}")
        report_overhead(decoder)
        report_reuse(decoder, a.rounds)
        report_latency(decoder, a.output_len)
        report_throughput(decoder, a.requests, a.rounds)


if __name__ == "__main__":
    main()
