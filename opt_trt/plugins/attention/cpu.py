"""The tactics of attention on a CPU."""

from __future__ import annotations

from collections.abc import Collection

import torch

from opt_trt.ops import AttentionInputs, ReferenceOps
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.cpu.operators import Operators
from opt_trt.plugins.tactic import Tactic

LANES = 16  # fp32 lanes of simd.h
LIBRARY_LAYOUT, OWN_LAYOUT = "library", "own"
LIBRARY = Tactic("library", LIBRARY_LAYOUT)  # torch's
# The others are kernels of the plugin library: a name stands here and in tactics.h, its number only there.
UNFUSED = Tactic("unfused", OWN_LAYOUT)  # whole rows of scores
FLASH = Tactic("flash", OWN_LAYOUT)  # tiles with a running softmax, fused (FMHA)
# The same with queries and weights rounded to bf16, each by up to 2^-9 of its value. Scores of a few change by 2^-8.
FLASH_PAIRS = Tactic("flash_pairs", OWN_LAYOUT, tolerance=2**-6, needs="avx512_bf16")
FUSED = (FLASH, FLASH_PAIRS)
TACTICS = (LIBRARY, UNFUSED, *FUSED)


def refusal(tactic: Tactic, problem: AttentionProblem, extras: Collection[str]) -> str | None:
    """Return why a tactic cannot take part, or None; `extras` are processor flags beyond the instruction set."""
    if problem.device != "cpu":
        return f"needs a CPU, found {problem.device}"
    if tactic in FUSED and problem.phase == "generation":
        return "one query per sequence has nothing to tile"
    if tactic in FUSED and problem.head_size % LANES:
        return f"needs head_size % {LANES} == 0, found {problem.head_size}"
    if tactic == FLASH_PAIRS and problem.dtype != torch.bfloat16:
        return f"{problem.stored} queries are not rounded to bf16"
    return tactic.lacks(extras)


def kernel_number(operators: Operators, tactic: Tactic) -> int | None:
    """Return the number of a tactic's kernel, None if torch computes attention; ask before a program is traced."""
    return None if tactic == LIBRARY else operators.attention_tactic(tactic.name)


def run_attention(
    operators: Operators, kernel: int | None, tensors: tuple[torch.Tensor, torch.Tensor], step: AttentionInputs
) -> torch.Tensor:
    """Compute attention on `tensors` = (qkv, kv_cache), by `kernel` for sequences that have several queries."""
    qkv, kv_cache = tensors
    if kernel is None:
        return ReferenceOps().attention(qkv, kv_cache, step)
    return operators.attention(
        qkv, kv_cache, step.slot_mapping, step.query_start, step.kv_lens, step.block_tables, kernel
    )
