"""The attention plugin: its problems and its tactics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from opt_trt.ops import AttentionInputs, ReferenceOps
from opt_trt.plugins.tactic import Tactic

LANES = 16  # fp32 lanes of simd.h
LIBRARY_LAYOUT, OWN_LAYOUT = "library", "own"
LIBRARY = Tactic("library", LIBRARY_LAYOUT, 0)
ROWS = Tactic("rows", OWN_LAYOUT, 0)  # whole rows of scores, unfused
FLASH = Tactic("flash", OWN_LAYOUT, 1)  # tiles with a running softmax, fused (FMHA)
TACTICS = (LIBRARY, ROWS, FLASH)
PHASES = ("generation", "context")  # the buckets: one query per sequence, or many


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

    def key(self) -> str:
        """The problem's name in timing caches."""
        return (
            f"attention {self.phase} heads={self.heads} head_size={self.head_size} q={self.queries} kv={self.kv_len} "
            f"block={self.tokens_per_block} {str(self.dtype).removeprefix('torch.')}"
        )


def refusal(tactic: Tactic, problem: AttentionProblem) -> str | None:
    """None, or why a tactic cannot take part."""
    if problem.device != "cpu":
        return f"needs a CPU, found {problem.device}"
    if tactic == FLASH and problem.phase == "generation":
        return "one query per sequence has nothing to tile"
    if tactic == FLASH and problem.head_size % LANES:
        return f"needs head_size % {LANES} == 0, found {problem.head_size}"
    return None


def fused_from(context: Tactic) -> int:
    """What the operator is told: the least number of queries that takes the fused kernel, 0 for none."""
    return 2 if context == FLASH else 0


def run_attention(
    native: Any, layout: str, threshold: int, tensors: tuple[torch.Tensor, torch.Tensor], step: AttentionInputs
) -> torch.Tensor:
    """Attention on `tensors` = (qkv, kv_cache) with the winners of both phases."""
    qkv, kv_cache = tensors
    if layout == LIBRARY_LAYOUT:
        return ReferenceOps().attention(qkv, kv_cache, step)
    out: torch.Tensor = native.attention(
        qkv, kv_cache, step.slot_mapping, step.query_start, step.kv_lens, step.block_tables, threshold
    )
    return out
