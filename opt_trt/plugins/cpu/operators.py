"""The operators of the C++ plugin library, as Python calls them; `native/register.cpp` defines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

Tensor = torch.Tensor


class Operators(Protocol):
    """The operators of one library: `torch.ops.<namespace>`.

    Tactics are numbers there, which `gemm_tactic` and `attention_tactic` return for a name; for an unknown name they
    raise a RuntimeError.
    """

    def __hash__(self) -> int: ...

    def gemm_tactic(self, name: str) -> int:
        """Return the number of a tactic of matrix products."""
        ...

    def attention_tactic(self, name: str) -> int:
        """Return the number of a tactic of attention."""
        ...

    def gemm(
        self, x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None,
        relu: bool, n: int, buckets: Sequence[int], tactics: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """Multiply by the tactic of the bucket that the tokens fall into; see `Ops.gemm`."""
        ...

    def attention(
        self, qkv: Tensor, cache: Tensor, slot_mapping: Tensor, query_start: Tensor, kv_lens: Tensor,
        block_tables: Tensor, tactic: int,
    ) -> Tensor:  # fmt: skip
        """Append keys and values to the cache, then attend; see `Ops.attention`."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """Normalize rows; see `Ops.layer_norm`."""
        ...

    def join_shared_memory(self, memory: Tensor, ranks: int, rank: int, timeout_s: float, spins: int) -> int:
        """Join a tensor-parallel group whose ranks all map `memory`."""
        ...

    def join_mpi(self, mpi: Tensor, ranks: int, timeout_s: float) -> int:
        """Join a tensor-parallel group by the addresses and handles of MPI in `mpi`."""
        ...

    def all_reduce(self, x: Tensor, ranks: int) -> Tensor:
        """Sum over the joined group of `ranks` ranks."""
        ...

    def all_gather(self, x: Tensor, ranks: int, features: int) -> Tensor:
        """Gather from the joined group of `ranks` ranks."""
        ...

    def record(self, events: Tensor, on: bool) -> int:
        """Start or stop to record what runs in `events`; return the number of events recorded before."""
        ...

    def sum_words(self, data: Tensor) -> int:
        """Read all words of `data` and return their sum modulo 2^32."""
        ...

    def resting_threads(self) -> int:
        """Return how many threads of the team stay away, because other programs use their cores."""
        ...
