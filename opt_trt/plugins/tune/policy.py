"""Which tactics of a CPU take part: what the problem, the processor and the builder's flags say."""

from __future__ import annotations

from dataclasses import dataclass

from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.tactic import Tactic

DETERMINISTIC = "--deterministic: its sums depend on what else is in the step"
ROUNDED_FURTHER = "activations of several tokens only, and with --context_int8"
ROUNDS = "--deterministic: tokens that come alone are not rounded"
MOST_UNWIDENED = 16  # tokens: making words of weights takes what the products of ten take, so few more gain nothing
WIDENED = f"more than {MOST_UNWIDENED} tokens only"

Reasons = dict[Tactic, str | None]  # why each tactic is kept out, or None


@dataclass(frozen=True)
class Policy:
    """What the builder's flags say of problems and tactics."""

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
    """Of a matrix product in the bucket that is timed at so many tokens."""
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
    """Of attention in a phase."""
    reasons = {t: attention.refusal(t, problem, policy.extras) for t in attention.TACTICS}
    if not policy.context_fmha:
        reasons |= {t: reasons[t] or "--context_fmha disable" for t in attention.FUSED}
    if not policy.attention:
        reasons |= dict.fromkeys((attention.UNFUSED, *attention.FUSED), "--gpt_attention_plugin disable")
    if policy.deterministic:
        reasons |= dict.fromkeys((attention.LIBRARY, *attention.FUSED), DETERMINISTIC)
    return reasons
