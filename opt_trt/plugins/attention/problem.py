"""Attention of one layer: its sizes, its types and its phases."""

from __future__ import annotations

from dataclasses import dataclass

import torch

GENERATION, CONTEXT = "generation", "context"  # one query per sequence, or many
PHASES = (GENERATION, CONTEXT)


@dataclass(frozen=True)
class AttentionProblem:
    """Attention of one layer in one phase, on a typical step: queries and cached tokens of one sequence."""

    phase: str
    heads: int
    head_size: int
    dtype: torch.dtype
    tokens_per_block: int
    queries: int
    kv_len: int
    device: str = "cpu"  # or "cuda"

    @property
    def stored(self) -> str:
        """The name of the cache's type."""
        return str(self.dtype).removeprefix("torch.")

    def key(self) -> str:
        """Return the problem's name in timing caches."""
        return (
            f"attention {self.phase} heads={self.heads} head_size={self.head_size} q={self.queries} kv={self.kv_len} "
            f"block={self.tokens_per_block} {self.stored}"
        )
