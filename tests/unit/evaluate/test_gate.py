"""The gate: what passes, what misses, what cannot be judged."""

from __future__ import annotations

import math

import pytest

from opt_trt.errors import CheckFailed, UserError
from opt_trt.evaluate.gate import Gate, check_gates
from opt_trt.evaluate.scores import Scores


def scores(rouge1: float, perplexity: float | None = None, title: str = "engine") -> Scores:
    values = {"rouge1": rouge1} | ({} if perplexity is None else {"perplexity": perplexity})
    return Scores(title, (), values)


def check_gate(gate: Gate, engine: Scores, reference: Scores | None) -> None:
    check_gates([gate], [engine], reference)


def test_above_the_threshold_passes() -> None:
    check_gate(Gate(15.0), scores(15.0001), None)


def test_what_passed_is_said_with_its_limits() -> None:
    gates = [Gate(89.9, 9.0, 0.5), Gate(15.0, 15.0, 0.5)]
    engines = [scores(91.54, 8.5, "a"), scores(92.0, 9.5, "b")]
    assert check_gates(gates, engines, scores(91.6, title="Hugging Face")) == (
        "a: ROUGE-1 91.54 > 89.9; perplexity 8.5000 < 9; 0.06 lost against Hugging Face, of at most 0.5 lost; "
        "b: ROUGE-1 92.00 > 15, the default of --tensorrt_llm_rouge1_threshold; "
        "perplexity 9.5000 < 15, the default of --tensorrt_llm_ppl_threshold; "
        "0.40 gained against Hugging Face, of at most 0.5 lost"
    )


def test_exactly_the_threshold_misses() -> None:
    message = r"^engine: ROUGE-1 15\.0000 is not above --tensorrt_llm_rouge1_threshold 15$"
    with pytest.raises(CheckFailed, match=message):
        check_gate(Gate(15.0), scores(15.0), None)


def test_perplexity_must_be_strictly_below() -> None:
    check_gate(Gate(15.0, perplexity_below=9.0), scores(20.0, 8.999), None)
    with pytest.raises(CheckFailed, match=r"perplexity 9\.0000 is not below --tensorrt_llm_ppl_threshold 9$"):
        check_gate(Gate(15.0, perplexity_below=9.0), scores(20.0, 9.0), None)


def test_infinite_perplexity_misses() -> None:
    with pytest.raises(CheckFailed, match="perplexity inf"):
        check_gate(Gate(15.0, perplexity_below=9.0), scores(20.0, math.inf), None)


def test_perplexity_is_not_checked_unless_asked() -> None:
    check_gate(Gate(15.0), scores(20.0, 1e9), None)


def test_a_drop_of_exactly_the_limit_passes() -> None:
    check_gate(Gate(15.0, rouge1_drop_at_most=0.5), scores(19.5), scores(20.0))


def test_a_larger_drop_names_both_numbers() -> None:
    with pytest.raises(
        CheckFailed, match=r"19\.2500 is 0\.7500 below Hugging Face's, more than --max_rouge1_drop 0\.5"
    ):
        check_gate(Gate(15.0, rouge1_drop_at_most=0.5), scores(19.25), scores(20.0, title="Hugging Face"))


def test_a_gain_over_the_reference_passes() -> None:
    check_gate(Gate(15.0, rouge1_drop_at_most=0.0), scores(21.0), scores(20.0))


def test_every_miss_is_in_the_one_line() -> None:
    with pytest.raises(CheckFailed) as failure:
        check_gate(Gate(15.0, 9.0, 0.5), scores(10.0, 10.0), scores(20.0))
    assert str(failure.value).count("; ") == 2 and "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("engine", "reference"),
    [(scores(math.nan, 1.0), scores(20.0)), (scores(20.0, math.nan), scores(20.0)), (scores(20.0), scores(20.0)),
     (scores(20.0, 1.0), scores(math.nan))],
)  # fmt: skip
def test_what_is_not_a_number_is_no_verdict(engine: Scores, reference: Scores) -> None:
    with pytest.raises(UserError, match="the gate scored nothing"):
        check_gate(Gate(15.0, 9.0, 0.5), engine, reference)


def test_a_limit_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(UserError, match="a limit of the gate is not a number"):
        Gate(15.0, rouge1_drop_at_most=math.nan)


def test_each_engine_has_its_gate_and_all_misses_are_named() -> None:
    engines = [scores(90.0, title="fp16"), scores(80.0, title="int8"), scores(70.0, title="int4")]
    check_gates([Gate(89.0), Gate(79.0), Gate(69.0)], engines, None)
    with pytest.raises(CheckFailed, match=r"^fp16: ROUGE-1 90.*; int4: ROUGE-1 70"):
        check_gates([Gate(95.0), Gate(79.0), Gate(75.0)], engines, None)
