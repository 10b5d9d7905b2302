"""Check that the engines' scores are within the limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def check_gates(gates: Sequence[Gate], engines: Sequence[Scores], reference: Scores | None) -> None:
    """Raise `CheckFailed`, which names every score beyond a limit, or `UserError` if a score is not a number."""
    judged = [(engine.title, _misses(gate, engine, reference)) for gate, engine in zip(gates, engines, strict=True)]
    if failed := [f"{title}: {'; '.join(misses)}" for title, misses in judged if misses]:
        raise CheckFailed("; ".join(failed))


def _misses(gate: Gate, engine: Scores, reference: Scores | None) -> list[str]:
    rouge1 = _number(engine, "rouge1")
    misses = []
    if not rouge1 > gate.rouge1_above:
        misses.append(f"ROUGE-1 {rouge1:.4f} is not above --tensorrt_llm_rouge1_threshold {gate.rouge1_above:g}")
    if gate.perplexity_below is not None:
        perplexity = _number(engine, "perplexity")
        if not perplexity < gate.perplexity_below:
            limit = f"--tensorrt_llm_ppl_threshold {gate.perplexity_below:g}"
            misses.append(f"perplexity {perplexity:.4f} is not below {limit}")
    if gate.rouge1_drop_at_most is not None:
        assert reference is not None, "the flags guarantee a Hugging Face run"
        drop = _number(reference, "rouge1") - rouge1
        if not drop <= gate.rouge1_drop_at_most:
            misses.append(
                f"ROUGE-1 {rouge1:.4f} is {drop:.4f} below {reference.title}'s, more than --max_rouge1_drop "
                f"{gate.rouge1_drop_at_most:g}"
            )
    return misses


def _number(scores: Scores, key: str) -> float:
    value = scores.values.get(key, math.nan)
    if math.isnan(value):
        raise UserError(f"the gate scored nothing: {key} of {scores.title} is not a number; check model and engine")
    return value
