"""Steps that take three times as long as their tactics did at the build are named once, and others are not."""

from __future__ import annotations

import pytest
import torch

from opt_trt.backends.inductor.decoder.step_watch import BETWEEN_S, ExpectedStep, StepWatch
from opt_trt.plugins.tactic import BUCKETS
from opt_trt.step import StepInputs

TIMES = {
    "qkv": [100.0 * (bucket + 1) for bucket in range(len(BUCKETS) + 1)],
    "fc": [100.0] * (len(BUCKETS) + 1),
    "head": [1000.0] * (len(BUCKETS) + 1),
    "attention": [50.0, 5000.0],
}
EXPECTED = ExpectedStep(TIMES, layers=10, kv_len=512)
ONE_TOKEN_S = (10 * (100 + 100 + 50) + 1000) / 1e6


def step(tokens: int = 1, sequences: int = 1, kv_len: int = 32) -> StepInputs:
    ids, lens = torch.zeros(tokens, dtype=torch.int64), torch.full((sequences,), kv_len, dtype=torch.int32)
    rows = torch.arange(sequences)
    return StepInputs(ids, ids, ids, rows.int(), lens, torch.zeros(sequences, 1, dtype=torch.int32), rows)


def said(step_s: float, seconds: float, inputs: StepInputs) -> list[str]:
    """Return what a watch says of steps that take as long as given, one after another."""
    lines: list[str] = []
    watch, now = StepWatch(EXPECTED, lines.append), 100.0
    while now < 100.0 + seconds:
        watch.observe(now, now + step_s, inputs)
        now += step_s
    return lines


@pytest.mark.parametrize(
    ("inputs", "expected_us"),
    [
        (step(), 10 * (100 + 100 + 50) + 1000),
        (step(8, 8), 10 * (300 + 100 + 50) + 1000),
        (step(8, 8, 512), 10 * (300 + 100 + 400) + 1000),
        (step(512, 1, 512), 10 * (700 + 100 + 5000) + 1000),
        (step(1024, 2, 512), 10 * (2 * (700 + 100) + 10000) + 1000),
    ],
)
def test_a_step_is_expected_to_take_what_its_tactics_took(inputs: StepInputs, expected_us: float) -> None:
    assert EXPECTED.seconds(inputs) == pytest.approx(expected_us / 1e6)


def test_slow_steps_are_named_once() -> None:
    [line] = said(8 * ONE_TOKEN_S, 10.0, step())
    assert "steps take 8 times as long as when the engine was built" in line
    assert "--threads 1" in line


@pytest.mark.parametrize(("factor", "seconds"), [(2.5, 10.0), (8.0, 0.9), (0.5, 10.0)])
def test_steps_that_are_hardly_slower_or_slow_for_a_moment_are_not_named(factor: float, seconds: float) -> None:
    assert said(factor * ONE_TOKEN_S, seconds, step()) == []


def test_a_few_long_steps_among_many_are_not_named() -> None:
    lines: list[str] = []
    watch, now = StepWatch(EXPECTED, lines.append), 0.0
    for index in range(20_000):
        took = ONE_TOKEN_S * (30 if index % 100 == 50 else 0.8)
        watch.observe(now, now + took, step())
        now += took
    assert lines == []


def test_most_steps_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[StepInputs] = []
    monkeypatch.setattr(EXPECTED, "seconds", lambda inputs: compared.append(inputs) or ONE_TOKEN_S)
    said(ONE_TOKEN_S, 1.0, step())
    assert 1 <= len(compared) <= 1.0 / BETWEEN_S


def test_an_engine_without_times_is_never_named() -> None:
    lines: list[str] = []
    watch = StepWatch(None, lines.append)
    for index in range(100):
        watch.observe(float(index), index + 1.0, step())
    assert lines == []
