"""The attention plugin: its problems and its tactics."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from opt_trt.ops import AttentionInputs, ReferenceOps
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.tactic import Tactic

LANES = 16  # fp32 lanes of simd.h
LIBRARY_LAYOUT, OWN_LAYOUT = "library", "own"
LIBRARY = Tactic("library", LIBRARY_LAYOUT, 0)
ROWS = Tactic("rows", OWN_LAYOUT, 0)  # whole rows of scores, unfused
FLASH = Tactic("flash", OWN_LAYOUT, 1)  # tiles with a running softmax, fused (FMHA)
# The same with queries and weights rounded to bf16, each by up to 2^-9 of its value: scores of a few move by some 2^-8.
FLASH_PAIRS = Tactic("flash_pairs", OWN_LAYOUT, 2, 2**-6, "avx512_bf16")
FUSED = (FLASH, FLASH_PAIRS)
TACTICS = (LIBRARY, ROWS, *FUSED)  # the values are run_attention's in paged.h


def refusal(tactic: Tactic, problem: AttentionProblem, extras: Collection[str]) -> str | None:
    """None, or why a tactic cannot take part; `extras` are the flags the processor has beyond its instruction set."""
    if problem.device != "cpu":
        return f"needs a CPU, found {problem.device}"
    if tactic in FUSED and problem.phase == "generation":
        return "one query per sequence has nothing to tile"
    if tactic in FUSED and problem.head_size % LANES:
        return f"needs head_size % {LANES} == 0, found {problem.head_size}"
    if tactic == FLASH_PAIRS and problem.dtype != torch.bfloat16:
        return f"{problem.stored} queries are not rounded to bf16"
    return tactic.lacks(extras)


def run_attention(
    native: Any, context: Tactic, tensors: tuple[torch.Tensor, torch.Tensor], step: AttentionInputs
) -> torch.Tensor:
    """Attention on `tensors` = (qkv, kv_cache), by `context` where a sequence has several queries."""
    qkv, kv_cache = tensors
    if context.layout == LIBRARY_LAYOUT:
        return ReferenceOps().attention(qkv, kv_cache, step)
    out: torch.Tensor = native.attention(
        qkv, kv_cache, step.slot_mapping, step.query_start, step.kv_lens, step.block_tables, context.value
    )
    return out
