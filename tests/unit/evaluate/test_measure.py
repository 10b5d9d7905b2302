"""The measuring loop: in turns, timed apart, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from opt_trt.evaluate.dataset import Article
from opt_trt.evaluate.measure import MeasurePlan, measure
from opt_trt.evaluate.prompts import Sample
from opt_trt.evaluate.summarizer import Demand, TokenIds

SAMPLES = [Sample(Article(n, f"text {n}", f"highlight {n}"), (2, n)) for n in range(5)]


class Recorder:
    """A model that answers a prompt with its last token, takes its time, and writes down when it was asked."""

    def __init__(self, name: str, seconds: float, log: list[str], clock: list[float]) -> None:
        self._name, self._seconds, self._log, self._clock = name, seconds, log, clock

    def check(self, demand: Demand) -> None:
        raise AssertionError("checked before measuring")

    def generate(self, prompts: Sequence[TokenIds]) -> list[TokenIds]:
        self._log.append(f"{self._name} {len(prompts)}")
        self._clock[0] += self._seconds
        return [(prompt[-1],) for prompt in prompts]

    def mean_nll(self, prompt: TokenIds, output: TokenIds) -> float:
        self._clock[0] += 1000.0
        return float(prompt[-1] + output[-1])


def run(perplexity: bool = False) -> tuple[list[str], dict[str, tuple[list[TokenIds], list[float], float]]]:
    log: list[str] = []
    clock = [0.0]
    models = {"hf": Recorder("hf", 3.0, log, clock), "engine": Recorder("engine", 2.0, log, clock)}
    measured = measure(models, SAMPLES, MeasurePlan(2, perplexity), lambda: clock[0])
    return log, {name: (m.outputs, m.nlls, m.latency_s) for name, m in measured.items()}


def test_models_take_turns_batch_by_batch() -> None:
    assert run()[0] == ["hf 2", "engine 2", "hf 2", "engine 2", "hf 1", "engine 1"]


def test_rows_stay_in_order_over_batches() -> None:
    assert run()[1]["engine"][0] == [(0,), (1,), (2,), (3,), (4,)]


def test_only_generation_is_timed() -> None:
    measured = run(perplexity=True)[1]
    assert (measured["hf"][2], measured["engine"][2]) == (9.0, 6.0)


def test_every_text_is_scored_when_asked() -> None:
    assert run(perplexity=True)[1]["hf"][1] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert run()[1]["hf"][1] == []


def test_no_progress_bar_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert capsys.readouterr().err == ""
