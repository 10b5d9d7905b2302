"""Milliseconds a token beside transformers and the machine's ceiling, in one process, taking turns.

    python benchmarks/generation.py --model_shape opt-125m --precision int8 --batch_size 1 --input_len 200

Weights are random at real shapes. The ceiling is the rate at which two threads can read memory, measured before and
after; a run counts only if the two agree within 8 %. The context phase is timed as a generation of one token.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the commands do

import torch
from transformers import OPTConfig, OPTForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout, nothing installed

from opt_trt.backends import open_engine
from opt_trt.build import build
from opt_trt.config.build import BuildConfig
from opt_trt.config.convert import ConvertConfig
from opt_trt.convert import convert
from opt_trt.runtime.kv_cache import KvCacheLimit
from opt_trt.runtime.request import Request
from opt_trt.runtime.session import Session

# hidden, layers, heads, ffn
SHAPES = {
    "demo": (256, 4, 4, 1024),
    "opt-125m": (768, 12, 12, 3072),
    "opt-1.3b": (2048, 24, 32, 8192),
}


WEIGHT_ONLY = {"dtype": "float16", "use_weight_only": True}
PRECISIONS = {  # how a checkpoint is converted; transformers computes in its dtype, with plain weights
    "float32": {"dtype": "float32"}, "float16": {"dtype": "float16"}, "bfloat16": {"dtype": "bfloat16"},
    "int8": WEIGHT_ONLY, "int4": WEIGHT_ONLY | {"weight_only_precision": "int4"},
}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What is generated in one measurement."""

    batch_size: int
    input_len: int
    output_len: int


def random_model(shape: str, out: Path) -> Path:
    """A random OPT of a real shape, in Hugging Face format."""
    hidden, layers, heads, ffn = SHAPES[shape]
    config = OPTConfig(
        hidden_size=hidden, word_embed_proj_dim=hidden, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=ffn
    )
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(out)
    return out


def read_bandwidth() -> float:
    """GB/s at which memory can be read, over an array much larger than any cache."""
    data = torch.ones(2**28, dtype=torch.float32)
    data.sum()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - started)
    return data.nbytes / min(times) / 1e9


def engine_runner(model: Path, precision: str, work: Path) -> tuple[Session, Callable[[Load], None]]:
    """Convert and build; a function that generates."""
    quiet = {"log_level": "warning"}
    convert(ConvertConfig(model_dir=str(model), output_dir=str(work / "checkpoint"), **PRECISIONS[precision], **quiet))
    cache = str(work / "model.cache")
    build(BuildConfig(
        checkpoint_dir=str(work / "checkpoint"), output_dir=str(work / "engine"), output_timing_cache=cache, **quiet
    ))  # fmt: skip
    session = open_engine(work / "engine", KvCacheLimit(max_tokens=32768))

    def run(load: Load) -> None:
        prompt = tuple(range(10, 10 + load.input_len))
        session.generate([Request(prompt, load.output_len)] * load.batch_size)

    return session, run


def transformers_runner(model_dir: Path, dtype: str) -> Callable[[Load], None]:
    """The same with transformers, computing in `dtype`."""
    model = OPTForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).eval()

    def run(load: Load) -> None:
        ids = torch.arange(10, 10 + load.input_len).repeat(load.batch_size, 1)
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=load.output_len, do_sample=False,
                eos_token_id=None, pad_token_id=1,
            )  # fmt: skip

    return run


def measure(runners: dict[str, Callable[[Load], None]], load: Load, rounds: int) -> dict[str, list[float]]:
    """Seconds of each runner, a list per name; runners take turns."""
    for run in runners.values():
        run(load)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            started = time.perf_counter()
            run(load)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def weight_bytes(work: Path) -> int:
    """Bytes a step streams: all weights but the embedding tables."""
    from safetensors import safe_open

    with safe_open(work / "engine" / "rank0.weights.safetensors", framework="pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys() if "embedding" not in name)  # noqa: SIM118


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--input_len", type=int, default=200)
    parser.add_argument("--output_len", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    whole, first = Load(a.batch_size, a.input_len, a.output_len), Load(a.batch_size, a.input_len, 1)

    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        model = random_model(a.model_shape, work / "hf")
        _, ours = engine_runner(model, a.precision, work)
        runners = {"engine": ours, "transformers": transformers_runner(model, str(PRECISIONS[a.precision]["dtype"]))}
        before = read_bandwidth()
        context, total = measure(runners, first, a.rounds), measure(runners, whole, a.rounds)
        after = read_bandwidth()
        streamed = weight_bytes(work)
    report(a, context, total, (before, after, streamed))


def report(
    a: argparse.Namespace,
    context: dict[str, list[float]],
    total: dict[str, list[float]],
    machine: tuple[float, float, int],
) -> None:
    """Print medians with their spread, ratios, and the share of the ceiling."""
    before, after, streamed = machine
    agree = abs(before - after) / max(before, after) <= 0.08
    print(
        f"{a.model_shape} {a.precision}, batch {a.batch_size}, {a.input_len} + {a.output_len} tokens, {a.rounds} rounds"
    )
    print(
        f"read ceiling {before:.1f} GB/s before, {after:.1f} after: the run {'counts' if agree else 'does NOT count'}"
    )
    print(f"{'':<14}{'context ms':>12}{'ms/step':>10}{'min-max':>16}{'of ceiling':>12}{'ratio':>8}")
    steps = a.output_len - 1
    own = [(t - statistics.median(context["engine"])) / steps for t in total["engine"]]
    for name, seconds in total.items():
        start = statistics.median(context[name])
        step = [(t - start) / steps for t in seconds]
        middle = statistics.median(step)
        share = streamed / middle / 1e9 / max(before, after)
        spread = f"{min(step) * 1e3:.2f}-{max(step) * 1e3:.2f}"
        print(
            f"{name:<14}{start * 1e3:>12.1f}{middle * 1e3:>10.2f}{spread:>16}{share:>12.2f}"
            f"{middle / statistics.median(own):>8.2f}"
        )


if __name__ == "__main__":
    main()
