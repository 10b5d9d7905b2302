"""Check that the engines' scores are within the limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opt_trt.config.summarize_flags import DEFAULT_PERPLEXITY, DEFAULT_ROUGE1
from opt_trt.errors import CheckFailed, UserError
from opt_trt.evaluate.scores import Scores


@dataclass(frozen=True)
class Gate:
    """Limits of an engine's scores, ROUGE in percent; None is no limit."""

    rouge1_above: float
    perplexity_below: float | None = None
    rouge1_drop_at_most: float | None = None

    def __post_init__(self) -> None:
        if any(limit is not None and math.isnan(limit) for limit in vars(self).values()):
            raise UserError("a limit of the gate is not a number; give --tensorrt_llm_rouge1_threshold and others one")


@dataclass(frozen=True)
class Verdict:
    """The comparison of a score with its limit, such as `ROUGE-1 91.54 > 89.9`, or how it misses the limit."""

    passed: bool
    text: str


def check_gates(gates: Sequence[Gate], engines: Sequence[Scores], reference: Scores | None) -> str:
    """Return what passed against what, for every engine.

    `CheckFailed` names every score beyond a limit, `UserError` a score that is not a number.
    """
    judged = [(engine.title, _judge(gate, engine, reference)) for gate, engine in zip(gates, engines, strict=True)]
    missed = [(title, [v for v in verdicts if not v.passed]) for title, verdicts in judged]
    if failed := [(title, misses) for title, misses in missed if misses]:
        raise CheckFailed(_lines(failed))
    return _lines(judged)


def _lines(judged: Sequence[tuple[str, Sequence[Verdict]]]) -> str:
    return "; ".join(f"{title}: {'; '.join(verdict.text for verdict in verdicts)}" for title, verdicts in judged)


def _judge(gate: Gate, engine: Scores, reference: Scores | None) -> list[Verdict]:
    verdicts = [_judge_rouge1(gate, engine)]
    if gate.perplexity_below is not None:
        verdicts.append(_judge_perplexity(gate.perplexity_below, engine))
    if gate.rouge1_drop_at_most is not None:
        assert reference is not None, "the flags guarantee a Hugging Face run"
        verdicts.append(_judge_drop(gate.rouge1_drop_at_most, engine, reference))
    return verdicts


def _judge_rouge1(gate: Gate, engine: Scores) -> Verdict:
    rouge1, limit = _number(engine, "rouge1"), gate.rouge1_above
    if not rouge1 > limit:
        return Verdict(False, f"ROUGE-1 {rouge1:.4f} is not above --tensorrt_llm_rouge1_threshold {limit:g}")
    default = ", the default of --tensorrt_llm_rouge1_threshold" * (limit == DEFAULT_ROUGE1)
    return Verdict(True, f"ROUGE-1 {rouge1:.2f} > {limit:g}{default}")


def _judge_perplexity(limit: float, engine: Scores) -> Verdict:
    perplexity = _number(engine, "perplexity")
    if not perplexity < limit:
        return Verdict(False, f"perplexity {perplexity:.4f} is not below --tensorrt_llm_ppl_threshold {limit:g}")
    default = ", the default of --tensorrt_llm_ppl_threshold" * (limit == DEFAULT_PERPLEXITY)
    return Verdict(True, f"perplexity {perplexity:.4f} < {limit:g}{default}")


def _judge_drop(limit: float, engine: Scores, reference: Scores) -> Verdict:
    rouge1 = _number(engine, "rouge1")
    drop = _number(reference, "rouge1") - rouge1
    if not drop <= limit:
        text = f"ROUGE-1 {rouge1:.4f} is {drop:.4f} below {reference.title}'s, more than --max_rouge1_drop {limit:g}"
        return Verdict(False, text)
    lost = f"{drop:.2f} lost" if drop >= 0 else f"{-drop:.2f} gained"
    return Verdict(True, f"{lost} against {reference.title}, of at most {limit:g} lost")


def _number(scores: Scores, key: str) -> float:
    value = scores.values.get(key, math.nan)
    if math.isnan(value):
        raise UserError(f"the gate scored nothing: {key} of {scores.title} is not a number; check model and engine")
    return value
