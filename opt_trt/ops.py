"""The operations of a graph, and the plain torch reference of each.

Activations, the residual stream and sums are fp32; weights and KV cache are stored in the engine's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch.nn import functional

from opt_trt.quant.nibbles import unpack_nibbles


@dataclass(frozen=True)
class AttentionInputs:
    """The part of `StepInputs` attention reads; shapes and types are documented there."""

    slot_mapping: torch.Tensor
    query_start: torch.Tensor
    kv_lens: torch.Tensor
    block_tables: torch.Tensor


class Linear(NamedTuple):
    """The tensors of one matrix product; the weight has the layout of the tactic that reads it."""

    weight: torch.Tensor  # floating; int8; or uint8, two int4 in a byte
    scale: torch.Tensor | None = None  # fp32 [N], factors of integer weights
    bias: torch.Tensor | None = None  # fp32 [N]


class Collectives(Protocol):
    """The operations in which tensor-parallel ranks take part together."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of `x` [T, E] over the tensor-parallel ranks, with the same bits on each of them."""
        ...

    def all_gather(self, x: torch.Tensor, features: int) -> torch.Tensor:
        """Join the parts [T, n] of all tensor-parallel ranks in rank order, up to `features` → [T, features]."""
        ...


class Ops(Collectives, Protocol):
    """The operations of an OPT decoder."""

    def gemm(self, site: str, x: torch.Tensor, linear: Linear, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return `act(x [T, K] @ weight.T * scale + bias) + residual [T, N]`; the site names activation and layout."""
        ...

    def attention(self, qkv: torch.Tensor, kv_cache: torch.Tensor, step: AttentionInputs) -> torch.Tensor:
        """Append keys and values of `qkv` [T, 3 * H * D] to `kv_cache`, then attend causally → [T, H * D]."""
        ...

    def embedding(self, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Return rows of `table` [V, E] → fp32 [T, E]; ids are valid."""
        ...

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Normalize the last axis of `x` [T, E]."""
        ...


Exchange = Callable[[torch.Tensor], Sequence[torch.Tensor]]  # a rank's tensor → those of all ranks, in their order


def alone(x: torch.Tensor) -> Sequence[torch.Tensor]:
    """Exchange nothing: there are no other ranks."""
    return (x,)


class ReferenceCollectives:
    """The plain implementation of `Collectives`: ranks exchange their tensors, and each computes the result."""

    def __init__(self, exchange: Exchange = alone) -> None:
        self._exchange = exchange

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `Collectives.all_reduce`."""
        total, *others = self._exchange(x)
        for part in others:
            total = total + part
        return total

    def all_gather(self, x: torch.Tensor, features: int) -> torch.Tensor:
        """See `Collectives.all_gather`."""
        return torch.cat(tuple(self._exchange(x)), -1)[:, :features]


ALONE = ReferenceCollectives()  # the collectives of a single rank
RELU_SITES = frozenset({"fc"})


class ReferenceOps:
    """The plain, slow reference implementation, against which every tactic is checked."""

    def __init__(self, collectives: Collectives = ALONE) -> None:
        self._collectives = collectives

    def gemm(self, site: str, x: torch.Tensor, linear: Linear, residual: torch.Tensor | None = None) -> torch.Tensor:
        """See `Ops.gemm`; weight is row-major [N, K], of int4 [N, ceil(K / 2)]."""
        y = functional.linear(x, _widen(linear, x.shape[1]), linear.bias)
        y = functional.relu(y) if site in RELU_SITES else y
        return y if residual is None else y + residual

    def attention(self, qkv: torch.Tensor, kv_cache: torch.Tensor, step: AttentionInputs) -> torch.Tensor:
        """See `Ops.attention`. Scores every query against all keys and masks those of other sequences."""
        _, _, heads, block_tokens, head_size = kv_cache.shape
        q, k, v = qkv.view(-1, 3, heads, head_size).unbind(1)  # [T, H, D]
        at = (step.slot_mapping // block_tokens, step.slot_mapping % block_tokens)
        # One write for keys and values: [blocks, P, 2, H, D] indexed by (block, offset) of each token.
        kv_cache.permute(0, 3, 1, 2, 4).index_put_(at, torch.stack((k, v), 1).to(kv_cache.dtype))
        history = kv_cache[step.block_tables.long()].float()  # [S, B, 2, H, P, D]
        keys, values = history.permute(2, 3, 0, 1, 4, 5).flatten(2, 4).unbind(0)  # [H, S * B * P, D]
        visible, written = _visibility(step, block_tokens, q.shape[0])
        scores = (q * head_size**-0.5).transpose(0, 1) @ keys.transpose(1, 2)  # [H, T, S * B * P]
        weights = torch.where(visible, scores, -torch.inf).softmax(-1)
        # Unwritten memory and sequences that overflowed may hold NaN, and 0 * NaN is NaN in the sums of all others.
        finite = values.isfinite().all(-1).all(0)  # [S * B * P]
        y = (weights @ torch.where((written & finite)[:, None], values, 0.0)).transpose(0, 1).flatten(1)
        overflowed = (visible & (written & ~finite)).any(-1, keepdim=True)  # [T, 1]
        return torch.where(overflowed, torch.nan, y)

    def embedding(self, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `Ops.embedding`."""
        return functional.embedding(ids, table).float()

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Ops.layer_norm`."""
        return functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `Collectives.all_reduce`."""
        return self._collectives.all_reduce(x)

    def all_gather(self, x: torch.Tensor, features: int) -> torch.Tensor:
        """See `Collectives.all_gather`."""
        return self._collectives.all_gather(x, features)


def _widen(linear: Linear, k: int) -> torch.Tensor:
    """Return the fp32 weight [N, K] of a stored one."""
    weight = unpack_nibbles(linear.weight, 1)[:, :k] if linear.weight.dtype == torch.uint8 else linear.weight
    return weight.float() if linear.scale is None else weight.float() * linear.scale[:, None]


def _visibility(step: AttentionInputs, block_tokens: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which cached positions each query sees [T, S * B * P], and which are written at all [S * B * P]."""
    sequences, width = step.block_tables.shape
    device = step.kv_lens.device
    token = torch.arange(tokens, device=device, dtype=torch.int32)
    owner = torch.searchsorted(step.query_start[1:], token, right=True)  # [T], the sequence of each token
    position = step.kv_lens[owner] - (step.query_start[1:][owner] - token)
    place = torch.arange(width * block_tokens, device=device)  # position of each key in its sequence
    own = owner[:, None] == torch.arange(sequences, device=device)  # [T, S]
    visible = own[:, :, None] & (place <= position[:, None, None])  # [T, S, B * P]
    return visible.flatten(1), (place < step.kv_lens[:, None]).flatten()
