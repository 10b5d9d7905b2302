"""Time of a generation step of a TensorRT engine at several lengths: does attention stop where a sequence ends?

    python benchmarks/gpu_tensorrt.py --weights float16 int8 int4 --batch_size 1 8 64 --length 16 512 2047

Weights are random, at the shape of OPT-125M unless told otherwise. A step includes the choice of its tokens on the GPU,
and the wait for them; its time is the median of many, after one that compiles the kernels of its batch size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

import torch
from models import POSITIONS, SHAPES, random_model

from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import StepInputs


def build_engine(model: Path, weights: str, slots: int, root: Path) -> Path:
    """Build an engine of fp16 activations."""
    quantized = {"use_weight_only": True, "weight_only_precision": weights, "defer_quantization": True}
    flags = quantized if weights != "float16" else {}
    checkpoint, engine = root / weights / "checkpoint", root / weights / "engine"
    convert(ConvertConfig(model_dir=str(model), output_dir=str(checkpoint), dtype="float16", **flags))
    limits = {"max_batch_size": slots, "max_input_len": POSITIONS // 2, "max_seq_len": POSITIONS}
    build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir=str(engine), backend="tensorrt", **limits))
    return engine


def generation_step(rows: int, length: int) -> StepInputs:
    """Return a greedy step in which each of `rows` sequences has `length` tokens, the last of them new."""
    tokens = torch.arange(rows)
    return StepInputs(
        input_ids=tokens + 3, position_ids=torch.full_like(tokens, length - 1), slot_mapping=torch.zeros_like(tokens),
        query_start=torch.arange(rows + 1, dtype=torch.int32), kv_lens=torch.full((rows,), length, dtype=torch.int32),
        block_tables=tokens.int().view(-1, 1), last_token_ids=tokens, greedy=True,
    )  # fmt: skip


def step_ms(session: DecoderSession, rows: int, length: int, repeats: int) -> float:
    """Return the median time of a step in ms."""
    inputs, executor, times = generation_step(rows, length), session.executor, []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        executor.decoder.step(inputs, executor.kv_cache)
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="opt-125m", choices=SHAPES)
    parser.add_argument("--weights", nargs="+", default=["float16"], choices=("float16", "int8", "int4"))
    parser.add_argument("--batch_size", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--length", nargs="+", type=int, default=[16, 512, POSITIONS - 1])
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = random_model(args.shape, Path(directory) / "model")
        for weights in args.weights:
            engine = build_engine(model, weights, max(args.batch_size), Path(directory))
            session = open_engine(engine, KvCacheLimit())
            for cache in session.executor.kv_cache:
                cache.zero_()
            for rows, length in ((r, n) for r in args.batch_size for n in args.length):
                ms = step_ms(session, rows, length, args.repeats)
                print(f"{args.shape} {weights} batch {rows} length {length}: {ms:.3f} ms", flush=True)
            session.close()


if __name__ == "__main__":
    main()
