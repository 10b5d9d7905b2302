"""A random decoder layer in the GPU's types and layouts, with its plain twin in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from opt_trt.graph.decoder import Layer, layer_weights
from opt_trt.model.config import ModelConfig
from opt_trt.ops import ReferenceOps
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.ops.cuda import CudaOps
from opt_trt.plugins.ops.plan import BucketPlan
from opt_trt.plugins.tactic import Tactic
from opt_trt.quant import MODES

HIDDEN, INNER, HEADS = 128, 192, 2
SHAPES = {"qkv": (3 * HIDDEN, HIDDEN), "dense": (HIDDEN, HIDDEN), "fc": (INNER, HIDDEN), "proj": (HIDDEN, INNER)}
ALGORITHMS = {"int8": "W8A16", "int4": "W4A16"}


@dataclass(frozen=True)
class LayerPair:
    """The weights of one layer twice: as a GPU's engine has them, and what they stand for."""

    config: ModelConfig
    problems: Mapping[str, GemmProblem]
    stored: list[torch.Tensor]
    meant: list[torch.Tensor]

    def on_gpu(self, most_tokens: int | None, product: Tactic, attention: Tactic) -> Layer:
        """Return the layer with one tactic for all its products."""
        plan = BucketPlan(most_tokens, self.problems, dict.fromkeys(SHAPES, product), attention)
        return Layer(self.config, CudaOps(plan))

    def plain(self) -> Layer:
        """Return the reference. It knows no quantization, because `meant` is dequantized."""
        return Layer(model(self.config.dtype, None, self.config.do_layer_norm_before), ReferenceOps())


def model(dtype: str, weight_type: str | None, pre_norm: bool) -> ModelConfig:
    quantization = {"quant_algo": ALGORITHMS.get(weight_type)}
    return ModelConfig("OPTForCausalLM", dtype, 1, HEADS, HIDDEN, INNER, 100, 256, pre_norm, quantization=quantization)


def layer_pair(dtype: str, weight_type: str | None, pre_norm: bool = True) -> LayerPair:
    """Return a random layer; `weight_type` None stands for `dtype`."""
    config = model(dtype, weight_type, pre_norm)
    generator = torch.Generator().manual_seed(HIDDEN)
    problems = {
        site: GemmProblem(site, n, k, weight_type or dtype, dtype, True, site in ("dense", "proj"), "cuda")
        for site, (n, k) in SHAPES.items()
    }
    stored, meant = [], []
    for name in layer_weights(config):
        site, kind = name.split(".")[-2:]
        if site in SHAPES and kind == "weight":
            weight = torch.randn(SHAPES[site], generator=generator) * 0.1
            q, scale = MODES[weight_type].quantize(weight) if weight_type else (weight.to(getattr(torch, dtype)), None)
            stored += [padded.pack(q, problems[site])] + ([scale.float()] if weight_type else [])
            meant.append(MODES[weight_type].dequantize(q, scale).float() if weight_type else q.float())
        elif kind in ("weight", "bias"):
            vector = torch.randn(SHAPES[site][0] if site in SHAPES else HIDDEN, generator=generator)
            stored.append(vector)
            meant.append(vector)
    return LayerPair(config, problems, stored, meant)
