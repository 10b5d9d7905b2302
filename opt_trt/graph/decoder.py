"""OPT, as three programs: `embedding`, `layer` (looped over all layers) and `head`.

Weights, KV cache and step tensors are inputs, so one compiled `layer` serves every layer and every rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opt_trt.config.model import ModelConfig
from opt_trt.ops import AttentionInputs, Ops

LAYER_WEIGHTS = (
    "input_layernorm.weight", "input_layernorm.bias", "attention.qkv.weight", "attention.qkv.bias",
    "attention.dense.weight", "attention.dense.bias", "post_layernorm.weight", "post_layernorm.bias",
    "mlp.fc.weight", "mlp.fc.bias", "mlp.proj.weight", "mlp.proj.bias",
)  # fmt: skip
EMBEDDING_WEIGHTS = ("transformer.vocab_embedding.weight", "transformer.position_embedding.weight")
FINAL_NORM_WEIGHTS = ("transformer.ln_f.weight", "transformer.ln_f.bias")
HEAD_WEIGHT = "lm_head.weight"


def layer_weight_names(layer: int) -> tuple[str, ...]:
    """Checkpoint names of one layer's weights, in the order the `layer` program takes them."""
    return tuple(f"transformer.layers.{layer}.{name}" for name in LAYER_WEIGHTS)


def head_weight_names(config: ModelConfig) -> tuple[str, ...]:
    """Checkpoint names of the `head` program's weights, in its order."""
    return (*FINAL_NORM_WEIGHTS, HEAD_WEIGHT) if config.has_final_layer_norm else (HEAD_WEIGHT,)


class Embedding(torch.nn.Module):
    """Token and position ids [T] → hidden states [T, E]."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.ops = ops

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, vocab: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """`vocab` [V, E] and `position` [P, E] are the tables."""
        return self.ops.embedding(input_ids, vocab) + self.ops.embedding(position_ids, position)


class Layer(torch.nn.Module):
    """One decoder layer: hidden states [T, E] → hidden states [T, E]."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.pre_norm = config.do_layer_norm_before
        self.epsilon = config.norm_epsilon

    def forward(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], kv_cache: torch.Tensor, step: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """`weights` in the order of `LAYER_WEIGHTS`, `step` in that of `AttentionInputs`."""
        norm1_w, norm1_b, qkv_w, qkv_b, dense_w, dense_b, norm2_w, norm2_b, fc_w, fc_b, proj_w, proj_b = weights

        h = self._before(x, norm1_w, norm1_b)
        h = self.ops.attention(self.ops.gemm("qkv", h, qkv_w, qkv_b), kv_cache, AttentionInputs(*step))
        x = self._after(self.ops.gemm("dense", h, dense_w, dense_b, residual=x), norm1_w, norm1_b)

        h = self._before(x, norm2_w, norm2_b)
        h = self.ops.gemm("fc", h, fc_w, fc_b)
        return self._after(self.ops.gemm("proj", h, proj_w, proj_b, residual=x), norm2_w, norm2_b)

    def _before(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.ops.layer_norm(x, weight, bias, self.epsilon) if self.pre_norm else x

    def _after(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return x if self.pre_norm else self.ops.layer_norm(x, weight, bias, self.epsilon)


class Head(torch.nn.Module):
    """Hidden states [T, E] → logits [L, V] of the tokens `last_token_ids` [L]; fp16 if `logits_dtype` says so."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.final_norm = config.has_final_layer_norm
        self.epsilon = config.norm_epsilon
        self.rounded = config.logits_dtype == "float16"

    def forward(self, x: torch.Tensor, last_token_ids: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """`weights` in the order of `head_weight_names`."""
        x = x.index_select(0, last_token_ids)
        if self.final_norm:
            x = self.ops.layer_norm(x, weights[0], weights[1], self.epsilon)
        logits = self.ops.gemm("head", x, weights[-1])
        return logits.half() if self.rounded else logits  # widened outside: a compiler drops a round trip
