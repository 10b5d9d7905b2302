"""Kernels and decoders on a GPU beside its ceilings and beside transformers; prints the tables of docs/gpu.md.

    python benchmarks/gpu.py kernels --shape 6.7b --weights float16 int8 int4
    python benchmarks/gpu.py decode --shape 350m 6.7b 13b --weights float16 int8 int4 --batch_size 1 8 64
    python benchmarks/gpu.py context --shape 6.7b --tokens 2048
    python benchmarks/gpu.py transformers --shape 350m 6.7b

Weights are random and made on the GPU. Ceilings are measured in the same run: the rate at which a plain reduction reads
memory, and the rate at which the library multiplies random 8192 x 8192 matrices. Times are medians of replayed graphs.
A product is timed over the weights of several layers, so that no weight is in the cache.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

import torch
from gpu_decoder import POSITIONS, SHAPES, VOCAB, GpuLoad, RandomDecoder, fewest_splits
from gpu_timing import product_flop_per_us, read_bytes_per_us

from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.cuda.buckets import BUCKETS
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.gemm.problem import STORED

FEW_TOKENS, MANY_TOKENS = 1, 64  # transformers generates both; the difference gives the time of a token
MODES = {"eager SDPA": {}, "static cache + compile": {"cache_implementation": "static"}}


def kernels(args: argparse.Namespace) -> None:
    """Print µs of every tactic of every product, and the share of the reading rate that the fastest one reaches."""
    ceiling = read_bytes_per_us()
    for shape, weights in ((s, w) for s in args.shape for w in args.weights):
        decoder = RandomDecoder(shape, args.dtype, None if weights == args.dtype else weights)
        for site, problem in decoder.problems.items():
            read = math.prod(padded.packed_shape(problem)) * STORED[problem.weight_type].itemsize
            for tokens in BUCKETS:
                times = decoder.timings(site, tokens)
                best = min(times, key=times.__getitem__)
                others = " ".join(f"{name} {us:.1f}" for name, us in times.items())
                print(f"{shape} {weights} {site} {tokens}: {best}, {read / times[best] / ceiling:.2f} | {others}")
        del decoder


def decode(args: argparse.Namespace) -> None:
    """Print ms and tokens per second of generation steps, and their share of the rate of reading memory."""
    ceiling = read_bytes_per_us()
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for shape, weights in ((s, w) for s in args.shape for w in args.weights):
        decoder = RandomDecoder(shape, args.dtype, None if weights == args.dtype else weights)
        hidden, layers, heads, _ = SHAPES[shape]
        for batch_size, context in ((b, c) for b in args.batch_size for c in args.context):
            load = GpuLoad(batch_size, context)
            torch.cuda.reset_peak_memory_stats()
            us = decoder.generation_us(load, fewest_splits(load, heads, processors))
            read = decoder.weight_bytes() + batch_size * context * 2 * layers * hidden * decoder.dtype.itemsize
            rate = batch_size / us * 1e6
            print(
                f"{shape} {weights} batch {batch_size} context {context}: {us / 1e3:.3f} ms, {rate:.0f} tokens/s, "
                f"{read / us / 1e6:.2f} TB/s, {read / us / ceiling:.2f} of reading, {peak_gib():.2f} GiB"
            )
        del decoder


def context(args: argparse.Namespace) -> None:
    """Print ms of prompts, and their share of the rate of multiplying."""
    ceiling = product_flop_per_us(getattr(torch, args.dtype))
    for shape, weights in ((s, w) for s in args.shape for w in args.weights):
        decoder = RandomDecoder(shape, args.dtype, None if weights == args.dtype else weights)
        hidden, layers, _, _ = SHAPES[shape]
        for tokens in args.tokens:
            flop = layers * (24 * tokens * hidden**2 + 2 * tokens**2 * hidden) + 2 * VOCAB * hidden
            for tactic in (attention.FLASH, attention.HALF_FLASH)[: 2 if args.dtype == "float16" else 1]:
                us = decoder.context_us(tokens, tactic)
                print(f"{shape} {weights} {tokens} tokens, {tactic.name}: {us / 1e3:.2f} ms, {flop / us / ceiling:.2f}")
        del decoder


def transformers(args: argparse.Namespace) -> None:
    """Print ms per token of transformers' `generate`, greedy and in the same types."""
    from transformers import OPTConfig, OPTForCausalLM

    for shape in args.shape:
        hidden, layers, heads, ffn = SHAPES[shape]
        config = OPTConfig(
            hidden_size=hidden, word_embed_proj_dim=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            ffn_dim=ffn, do_layer_norm_before=shape != "350m", vocab_size=VOCAB, max_position_embeddings=POSITIONS,
            dtype=getattr(torch, args.dtype),
        )  # fmt: skip
        torch.set_default_dtype(getattr(torch, args.dtype))
        with torch.device("cuda"):
            model = OPTForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
        for mode, options in MODES.items():
            for batch_size, length in ((b, c) for b in args.batch_size for c in args.context):
                ids = torch.randint(3, VOCAB, (batch_size, length), device="cuda")
                torch.cuda.reset_peak_memory_stats()
                ms = ms_a_token(model, ids, options)
                print(f"{shape} {mode} batch {batch_size} context {length}: {ms:.2f} ms, {peak_gib():.2f} GiB")
        del model


def peak_gib() -> float:
    """Return the peak of used memory since the last reset."""
    return torch.cuda.max_memory_allocated() / 2**30


def ms_a_token(model: torch.nn.Module, ids: torch.Tensor, options: dict[str, str]) -> float:
    """Return the difference of the times of MANY_TOKENS and FEW_TOKENS, per token; compile before timing."""

    def seconds(tokens: int) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    for tokens in (MANY_TOKENS, FEW_TOKENS, MANY_TOKENS):
        seconds(tokens)
    spans = [seconds(MANY_TOKENS) - seconds(FEW_TOKENS) for _ in range(3)]
    return sorted(spans)[1] * 1e3 / (MANY_TOKENS - FEW_TOKENS)


TABLES = {"kernels": kernels, "decode": decode, "context": context, "transformers": transformers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--shape", nargs="+", default=["6.7b"], choices=SHAPES)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--weights", nargs="+", default=["float16"], help="dtype, int8 or int4")
    parser.add_argument("--batch_size", nargs="+", type=int, default=[1])
    parser.add_argument("--context", nargs="+", type=int, default=[128])
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA GPU, and torch sees none")
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, {args.table}, {args.dtype}")
    with torch.inference_mode():
        TABLES[args.table](args)


if __name__ == "__main__":
    main()
