"""Milliseconds a token beside transformers and the machine's ceiling, in one process, taking turns.

    python benchmarks/generation.py --model_shape opt-125m --precision int8 --batch_size 1 --input_len 200
    python benchmarks/generation.py --beside deterministic --batch_size 1 8 16

Weights are random at real shapes. The ceiling is the rate at which two threads can read memory, measured before and
after; a run counts only if the two agree within 8 %. The context phase is timed as a generation of one token. Ratios
are those of the rounds: what runs beside the engine over the engine, median (smallest-largest).
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
Seconds = dict[str, list[float]]  # of each runner, a round after the other


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


def engine_runner(
    model: Path, precision: str, work: Path, deterministic: bool = False
) -> tuple[Session, Callable[[Load], None]]:
    """Convert and build; a function that generates."""
    quiet = {"log_level": "warning"}
    convert(ConvertConfig(model_dir=str(model), output_dir=str(work / "checkpoint"), **PRECISIONS[precision], **quiet))
    build(BuildConfig(
        checkpoint_dir=str(work / "checkpoint"), output_dir=str(work / "engine"), deterministic=deterministic,
        output_timing_cache=str(work / "model.cache"), **quiet,
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


def measure(runners: dict[str, Callable[[Load], None]], load: Load, rounds: int) -> Seconds:
    """Seconds of each runner, a list per name; runners take turns."""
    for run in runners.values():
        run(load)
    seconds: Seconds = {name: [] for name in runners}
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


def opponent(name: str, model: Path, precision: str, work: Path) -> Callable[[Load], None]:
    """What takes turns with the engine."""
    if name == "deterministic":
        return engine_runner(model, precision, work / name, deterministic=True)[1]
    return transformers_runner(model, str(PRECISIONS[precision]["dtype"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--beside", choices=("transformers", "deterministic"), default="transformers")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1])
    parser.add_argument("--input_len", type=int, default=200)
    parser.add_argument("--output_len", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        model = random_model(a.model_shape, work / "hf")
        _, ours = engine_runner(model, a.precision, work)
        runners = {"engine": ours, a.beside: opponent(a.beside, model, a.precision, work)}
        streamed = weight_bytes(work)
        print(f"{a.model_shape} {a.precision}, {a.input_len} + {a.output_len} tokens, {a.rounds} rounds")
        for batch_size in a.batch_size:
            before = read_bandwidth()
            context = measure(runners, Load(batch_size, a.input_len, 1), a.rounds)
            total = measure(runners, Load(batch_size, a.input_len, a.output_len), a.rounds)
            ceiling = report_ceiling(batch_size, before, read_bandwidth())
            report(context, steps_of(context, total, a.output_len - 1), streamed / ceiling)


def steps_of(context: Seconds, total: Seconds, num_steps: int) -> Seconds:
    """Seconds a step of the generation phase, a list per name."""
    start = {name: statistics.median(seconds) for name, seconds in context.items()}
    return {name: [(t - start[name]) / num_steps for t in seconds] for name, seconds in total.items()}


def report_ceiling(batch_size: int, before: float, after: float) -> float:
    """Say whether the machine was the same all the time; bytes a second at best."""
    agree = abs(before - after) / max(before, after) <= 0.08
    print(
        f"batch {batch_size}; read ceiling {before:.1f} GB/s before, {after:.1f} after: "
        f"the run {'counts' if agree else 'does NOT count'}"
    )
    return max(before, after) * 1e9


def report(context: Seconds, step: Seconds, least: float) -> None:
    """Print medians with their spread, ratios, and `least` seconds a step as a share of it."""
    print(f"{'':<14}{'context ms':>12}{'ratio':>18}{'ms/step':>10}{'min-max':>16}{'ratio':>18}{'of ceiling':>12}")
    for name, seconds in step.items():
        start, middle = statistics.median(context[name]), statistics.median(seconds)
        spread = f"{min(seconds) * 1e3:.2f}-{max(seconds) * 1e3:.2f}"
        print(
            f"{name:<14}{start * 1e3:>12.1f}{ratio(context, name):>18}{middle * 1e3:>10.2f}{spread:>16}"
            f"{ratio(step, name):>18}{least / middle:>12.2f}"
        )


def ratio(times: Seconds, name: str) -> str:
    """Of a name's seconds to the engine's, round by round."""
    ratios = [other / own for other, own in zip(times[name], times["engine"], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


if __name__ == "__main__":
    main()
