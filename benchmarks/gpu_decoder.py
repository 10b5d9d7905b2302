"""A random OPT of a real shape on a GPU: the decoder's own modules with the fastest tactics, one graph per step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from gpu_timing import elapsed_us, replayed_us
from kernels.triton_argmax import argmax
from kernels.triton_embedding import embed

from opt_trt.graph.decoder import Head, Layer, head_weight_names, layer_weights
from opt_trt.model.config import ModelConfig
from opt_trt.ops import Linear
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.cuda.buckets import bound_of
from opt_trt.plugins.cuda.graphs import capture
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.gemm.problem import GemmCall, GemmProblem
from opt_trt.plugins.ops.cuda import CudaOps
from opt_trt.plugins.ops.plan import BucketPlan
from opt_trt.plugins.tactic import Tactic

# hidden, layers, heads, ffn
SHAPES = {
    "125m": (768, 12, 12, 3072), "350m": (1024, 24, 16, 4096), "1.3b": (2048, 24, 32, 8192),
    "2.7b": (2560, 32, 32, 10240), "6.7b": (4096, 32, 32, 16384), "13b": (5120, 40, 40, 20480),
    "30b": (7168, 48, 56, 28672), "66b": (9216, 64, 72, 36864),
}  # fmt: skip
VOCAB, POSITIONS, BLOCK_TOKENS = 50272, 2048, 64
ALGORITHMS = {"int8": "W8A16", "int4": "W4A16"}
COLD_BYTES = 2**29  # a product is timed on at least this many bytes of weights, more than the cache holds


@dataclass(frozen=True)
class GpuLoad:
    """The work of a step: the number of sequences, and the tokens that each has before it."""

    batch_size: int
    context: int


class RandomDecoder:
    """The weights and the KV cache of one model; `weight_type` None stands for `dtype`."""

    def __init__(self, shape: str, dtype: str, weight_type: str | None) -> None:
        hidden, layers, heads, ffn = SHAPES[shape]
        self.dtype, self.weight_type = getattr(torch, dtype), weight_type or dtype
        quantization = {"quant_algo": ALGORITHMS.get(self.weight_type)}
        self.config = ModelConfig(
            "OPTForCausalLM", dtype, layers, heads, hidden, ffn, VOCAB, POSITIONS, shape != "350m",
            quantization=quantization,
        )  # fmt: skip
        sizes = {"qkv": (3 * hidden, hidden), "dense": (hidden, hidden), "fc": (ffn, hidden), "proj": (hidden, ffn)}
        self.problems = {
            site: GemmProblem(site, n, k, self.weight_type, dtype, True, site in ("dense", "proj"), "cuda")
            for site, (n, k) in sizes.items()
        }
        self.problems["head"] = GemmProblem("head", VOCAB, hidden, dtype, dtype, False, False, "cuda")
        self.layers = [self._layer() for _ in range(layers)]
        self.vocab, self.position = self._random(VOCAB, hidden), self._random(POSITIONS, hidden)
        self.head = [torch.ones(hidden, device="cuda"), torch.zeros(hidden, device="cuda"), self._weight("head")]
        self.head = self.head[-len(head_weight_names(self.config)) :]

    def weight_bytes(self) -> int:
        """Return the bytes of all weights that a generation step reads."""
        return sum(w.nbytes for w in [*self.head, *(w for layer in self.layers for w in layer)])

    def products(self, site: str, tokens: int, tactic: Tactic, bucket: int | None) -> list[Callable[[], object]]:
        """Return calls of one product, each with the weights of another layer."""
        problem = self.problems[site]
        x = torch.randn(tokens, problem.k, device="cuda").to(self.dtype)
        residual = torch.randn(tokens, problem.n, device="cuda").to(self.dtype) if problem.residual else None
        return [
            lambda linear=linear: gemm.run_gemm(problem, GemmCall(x, linear, residual), tactic, bucket)
            for linear in self._cold(site)
        ]

    def timings(self, site: str, tokens: int) -> dict[str, float]:
        """Return µs of every supported tactic by name."""
        bucket = bound_of(tokens)
        return {
            tactic.name: replayed_us(self.products(site, tokens, tactic, bucket))
            for tactic in gemm.TACTICS
            if gemm.refusal(tactic, self.problems[site], bucket) is None
        }

    def plan(self, tokens: int, attend: Tactic) -> BucketPlan:
        """Return a plan with the fastest tactic of every product."""
        named = {tactic.name: tactic for tactic in gemm.TACTICS}
        times = {site: self.timings(site, tokens) for site in self.problems}
        fastest = {site: named[min(row, key=row.__getitem__)] for site, row in times.items()}
        return BucketPlan(bound_of(tokens), self.problems, fastest, attend)

    def generation_us(self, load: GpuLoad, attend: Tactic) -> float:
        """Return µs of one step, replayed as a graph; it includes the choice of the next tokens on the GPU."""
        return elapsed_us(capture(self._generation(load, attend)).replay)

    def context_us(self, tokens: int, attend: Tactic) -> float:
        """Return µs of one prompt up to its first token."""
        ops = CudaOps(self.plan(tokens, attend))
        layer, head = Layer(self.config, ops), Head(self.config, ops)
        cache, tables = self._cache(1, tokens)
        at = torch.arange(tokens, device="cuda")
        step = [at, _ints([0, tokens]), _ints([tokens]), tables]

        def run() -> torch.Tensor:
            x = embed(at, at, self.vocab, self.position)
            for weights, kv in zip(self.layers, cache, strict=True):
                x = layer(x, weights, kv, step)
            return argmax(head(x, at[-1:], self.head))

        return elapsed_us(capture(run).replay)

    def _generation(self, load: GpuLoad, attend: Tactic) -> Callable[[], None]:
        """Return a step that updates its own ids, positions, lengths and slots on the GPU."""
        ops = CudaOps(self.plan(load.batch_size, attend))
        layer, head = Layer(self.config, ops), Head(self.config, ops)
        cache, tables = self._cache(load.batch_size, load.context + 256)
        rows = torch.arange(load.batch_size, device="cuda")
        ids, positions = rows.clone(), torch.full_like(rows, load.context)
        lens, starts = positions.int() + 1, _ints(range(load.batch_size + 1))

        def run() -> None:
            slots = tables[rows, positions // BLOCK_TOKENS].long() * BLOCK_TOKENS + positions % BLOCK_TOKENS
            x = embed(ids, positions, self.vocab, self.position)
            for weights, kv in zip(self.layers, cache, strict=True):
                x = layer(x, weights, kv, [slots, starts, lens, tables])
            ids.copy_(argmax(head(x, rows, self.head)))
            positions.add_(1)
            lens.add_(1)

        return run

    def _cache(self, sequences: int, tokens: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        width = -(-tokens // BLOCK_TOKENS)
        shape = (sequences * width, 2, self.config.num_attention_heads, BLOCK_TOKENS, self.config.head_size)
        cache = [self._random(*shape) for _ in self.layers]
        return cache, _ints(range(sequences * width)).view(sequences, width)

    def _layer(self) -> list[torch.Tensor]:
        tensors = []
        for name in layer_weights(self.config):
            site, kind = name.split(".")[-2:]
            size = self.problems[site].n if site in self.problems else self.config.hidden_size
            vector = torch.full((size,), 1e-3 if kind == "per_channel_scale" else 0.1, device="cuda")
            tensors.append(self._weight(site) if kind == "weight" and site in self.problems else vector)
        return tensors

    def _cold(self, site: str) -> list[Linear]:
        """Return different weights of one product, together larger than the cache if there are enough of them."""
        if site == "head":
            return [Linear(self.head[-1].clone()) for _ in range(-(-COLD_BYTES // self.head[-1].nbytes))]
        linears = [self._linear(layer, site) for layer in self.layers]
        return linears[: -(-COLD_BYTES // linears[0].weight.nbytes)]

    def _linear(self, layer: list[torch.Tensor], site: str) -> Linear:
        named = dict(zip(layer_weights(self.config), layer, strict=True))
        prefix = next(name.removesuffix("weight") for name in named if name.endswith(f"{site}.weight"))
        return Linear(named[f"{prefix}weight"], named.get(f"{prefix}per_channel_scale"), named[f"{prefix}bias"])

    def _weight(self, site: str) -> torch.Tensor:
        problem = self.problems[site]
        shape = padded.packed_shape(problem)
        if not problem.quantized:
            return self._random(*shape)
        low, high, kind = (0, 256, torch.uint8) if problem.weight_type == "int4" else (-127, 128, torch.int8)
        return torch.randint(low, high, shape, device="cuda", dtype=kind)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=self.dtype) * 0.05


def fewest_splits(load: GpuLoad, heads: int, processors: int) -> Tactic:
    """Return the least split that gives every multiprocessor of the GPU two programs."""
    wanted = 2 * processors / (load.batch_size * heads)
    return next((t for t in attention.SPLIT_KEYS if t.parameter >= wanted), attention.SPLIT_KEYS[-1])


def _ints(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device="cuda")
