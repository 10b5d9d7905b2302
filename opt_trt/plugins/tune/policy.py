"""Decide which tactics of a CPU take part, from the problem, the processor and the builder's flags."""

from __future__ import annotations

from dataclasses import dataclass

from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.tactic import Tactic

DETERMINISTIC = "--deterministic: its sums depend on what else is in the step"
ROUNDED_FURTHER = "is for several tokens, and for --context_int8"
ROUNDS = "--deterministic: a token that comes alone is not rounded"
MOST_UNWIDENED = (
    16  # tokens: converting weights to words takes as long as multiplying ten tokens, so these gain nothing
)
WIDENED = f"is for more than {MOST_UNWIDENED} tokens"

Reasons = dict[Tactic, str | None]  # why each tactic is kept out, or None


@dataclass(frozen=True)
class Policy:
    """The builder's flags and limits, as far as tactics depend on them."""

    gemm: bool
    attention: bool
    context_fmha: bool
    deterministic: bool
    max_num_tokens: int
    opt_num_tokens: int | None
    tokens_per_block: int
    extras: frozenset[str]  # processor flags beyond the instruction set that is compiled for
    lm_head_precision: str | None = None
    context_int8: bool = False


def gemm_reasons(problem: GemmProblem, policy: Policy, tokens: int) -> Reasons:
    """Return the reasons for a matrix product, in the bucket that is timed at this number of tokens."""
    reasons = {t: gemm.refusal(t, problem, policy.extras) for t in gemm.TACTICS}
    if tokens == 1 or not policy.context_int8:
        reasons |= dict.fromkeys(gemm.FIXED8, ROUNDED_FURTHER)
    if tokens <= MOST_UNWIDENED:
        reasons |= dict.fromkeys(gemm.WORDS, WIDENED)
    if not policy.gemm:
        reasons |= dict.fromkeys(set(gemm.TACTICS) - {gemm.LIBRARY}, "--gemm_plugin disable")
    if policy.deterministic:
        reasons |= {gemm.LIBRARY: DETERMINISTIC} | dict.fromkeys((*gemm.PAIRS, *gemm.WORDS), ROUNDS)
    return reasons


def attention_reasons(problem: AttentionProblem, policy: Policy) -> Reasons:
    """Return the reasons for attention in a phase."""
    reasons = {t: attention.refusal(t, problem, policy.extras) for t in attention.TACTICS}
    if not policy.context_fmha:
        reasons |= {t: reasons[t] or "--context_fmha disable" for t in attention.FUSED}
    if not policy.attention:
        reasons |= dict.fromkeys((attention.UNFUSED, *attention.FUSED), "--gpt_attention_plugin disable")
    if policy.deterministic:
        reasons |= dict.fromkeys((attention.LIBRARY, *attention.FUSED), DETERMINISTIC)
    return reasons
