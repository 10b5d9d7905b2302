"""The tactics of attention on a GPU, by phase."""

from __future__ import annotations

import torch

from opt_trt.ops import AttentionInputs
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.attention.triton_context import TILES, context_attention
from opt_trt.plugins.attention.triton_generation import generation_attention
from opt_trt.plugins.tactic import Tactic

PAGED = "paged"
# The number is that of the parts into which a sequence's keys are split; each part has a program.
SPLIT_KEYS = tuple(Tactic(f"split_keys_{splits}", PAGED, splits, tolerance=2**-7) for splits in (1, 2, 4, 8, 16))
FLASH = Tactic("flash", PAGED, tolerance=2**-6)  # products are summed in fp32
HALF_FLASH = Tactic("half_flash", PAGED, tolerance=2**-5)  # products are summed in fp16
TACTICS = (*SPLIT_KEYS, FLASH, HALF_FLASH)


def refusal(tactic: Tactic, problem: AttentionProblem) -> str | None:
    """Return why a tactic cannot take part, or None."""
    if problem.device != "cuda":
        return f"needs a GPU, found {problem.device}"
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return f"needs activations of float16 or bfloat16, found {str(problem.dtype).removeprefix('torch.')}"
    if problem.head_size > max(TILES):
        return f"needs head_size <= {max(TILES)}, found {problem.head_size}"
    if tactic in SPLIT_KEYS and problem.phase != "generation":
        return "is for one query per sequence"
    if tactic == HALF_FLASH and problem.dtype != torch.float16:
        return "sums in fp16, whose range bfloat16 exceeds"
    return None


def run_attention(tactic: Tactic, qkv: torch.Tensor, kv_cache: torch.Tensor, step: AttentionInputs) -> torch.Tensor:
    """Append keys and values of `qkv` [T, 3 * H * D] to `kv_cache`, then attend causally → [T, H * D]."""
    lengths = (step.kv_lens, step.block_tables)
    out: torch.Tensor
    if tactic in SPLIT_KEYS:
        out = generation_attention(qkv, kv_cache, step.slot_mapping, *lengths, tactic.parameter)
    else:
        out = context_attention(qkv, kv_cache, step.slot_mapping, step.query_start, *lengths, tactic == HALF_FLASH)
    return out
