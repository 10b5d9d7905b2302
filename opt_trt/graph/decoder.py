"""OPT's `layer`, which runs once for each layer of a rank, and `head`; `embedding.py` has the program before them.

Weights, KV cache and step tensors are inputs, so that one compiled `layer` serves every layer and every rank.
Tensor-parallel ranks hold output features of `qkv`, `fc` and the head, and input features of `dense` and `proj`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from opt_trt.model.config import ModelConfig
from opt_trt.ops import AttentionInputs, Linear, Ops
from opt_trt.quant.mode import SCALE, scale_name

Pair = tuple[torch.Tensor, torch.Tensor]  # weight and bias of a layer norm

LINEARS = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj")
NORMS = ("input_layernorm", "post_layernorm")
FINAL_NORM_WEIGHTS = ("transformer.ln_f.weight", "transformer.ln_f.bias")
HEAD_WEIGHT = "lm_head.weight"


def layer_weights(config: ModelConfig) -> tuple[str, ...]:
    """Name the weights of the `layer` program in its order; names are those of a checkpoint, within the layer."""
    kinds = ("weight", "bias") if config.quant_algo is None else ("weight", SCALE, "bias")
    norms = tuple(f"{norm}.{kind}" for norm in NORMS for kind in ("weight", "bias"))
    return norms + tuple(f"{linear}.{kind}" for linear in LINEARS for kind in kinds)


def layer_weight_names(config: ModelConfig, layer: int) -> tuple[str, ...]:
    """Return the checkpoint names of a layer's weights, in the order of the `layer` program."""
    return tuple(f"transformer.layers.{layer}.{name}" for name in layer_weights(config))


def head_weight_names(config: ModelConfig, quantized: bool = False) -> tuple[str, ...]:
    """Name the weights of the `head` program in its order, which include the scale of a quantized head."""
    norm = FINAL_NORM_WEIGHTS if config.has_final_layer_norm else ()
    return (*norm, HEAD_WEIGHT, scale_name(HEAD_WEIGHT)) if quantized else (*norm, HEAD_WEIGHT)


class Layer(torch.nn.Module):
    """A decoder layer: hidden states [T, E] → hidden states [T, E]."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.names = layer_weights(config)
        self.pre_norm = config.do_layer_norm_before
        self.epsilon = config.norm_epsilon
        self.tp_size = config.mapping.tp_size

    def forward(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], kv_cache: torch.Tensor, step: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Compute the layer; `weights` are in the order of `layer_weights`, `step` in that of `AttentionInputs`."""
        named = dict(zip(self.names, weights, strict=True))
        norm1, norm2 = (_pair(named, name) for name in NORMS)
        qkv, dense, fc, proj = (_linear(named, name) for name in LINEARS)

        h = self._before(x, norm1)
        h = self.ops.attention(self.ops.gemm("qkv", h, qkv), kv_cache, AttentionInputs(*step))
        x = self._after(self._row_parallel("dense", h, dense, x), norm1)

        h = self._before(x, norm2)
        h = self.ops.gemm("fc", h, fc)
        return self._after(self._row_parallel("proj", h, proj, x), norm2)

    def _row_parallel(self, site: str, x: torch.Tensor, linear: Linear, residual: torch.Tensor) -> torch.Tensor:
        """Multiply features that are split over ranks. Bias and residual are added after the sum, so only once."""
        if self.tp_size == 1:
            return self.ops.gemm(site, x, linear, residual)
        assert linear.bias is not None, site
        total = self.ops.all_reduce(self.ops.gemm(site, x, linear._replace(bias=None)))
        return (total + linear.bias + residual).to(residual.dtype)  # the bias is fp32

    def _before(self, x: torch.Tensor, norm: Pair) -> torch.Tensor:
        return self.ops.layer_norm(x, *norm, self.epsilon) if self.pre_norm else x

    def _after(self, x: torch.Tensor, norm: Pair) -> torch.Tensor:
        return x if self.pre_norm else self.ops.layer_norm(x, *norm, self.epsilon)


def _pair(named: Mapping[str, torch.Tensor], name: str) -> Pair:
    return named[f"{name}.weight"], named[f"{name}.bias"]


def _linear(named: Mapping[str, torch.Tensor], name: str) -> Linear:
    weight, bias = _pair(named, name)
    return Linear(weight, named.get(f"{name}.{SCALE}"), bias)


class Head(torch.nn.Module):
    """Hidden states [T, E] → logits [L, V] of the tokens `last_token_ids` [L]; fp16 if `logits_dtype` says so.

    A tensor-parallel rank returns the logits of its part of the vocabulary [L, ceil(V / tp)].
    """

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.final_norm = config.has_final_layer_norm
        self.epsilon = config.norm_epsilon
        self.rounded = config.logits_dtype == "float16"

    def forward(self, x: torch.Tensor, last_token_ids: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute the logits; `weights` are in the order of `head_weight_names`."""
        linear = Linear(*weights[len(FINAL_NORM_WEIGHTS) :] if self.final_norm else weights)
        logits = self.ops.gemm("head", self.normed(x, last_token_ids, weights), linear)
        return logits.half() if self.rounded else logits  # the caller widens them: a compiler would drop the round trip

    def normed(self, x: torch.Tensor, token_ids: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return what the head multiplies: `x` [T, E] → [M, E] of the tokens `token_ids` [M], after the last norm."""
        x = x.index_select(0, token_ids)
        return self.ops.layer_norm(x, weights[0], weights[1], self.epsilon) if self.final_norm else x


SITES = {
    "attention.qkv.weight": "qkv",
    "attention.dense.weight": "dense",
    "mlp.fc.weight": "fc",
    "mlp.proj.weight": "proj",
    "lm_head.weight": "head",
}


def site_of(name: str) -> str | None:
    """Return the matrix product that a checkpoint tensor belongs to, None if it is a table or a vector."""
    return next((site for suffix, site in SITES.items() if name.endswith(suffix)), None)
