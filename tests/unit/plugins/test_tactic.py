"""Winners are chosen per bucket, within one layout."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.tactic import BUCKETS, Tactic, Timing, bucket_weights, choose
from opt_trt.plugins.tune.cpu import affordable, representatives
from opt_trt.plugins.tune.noise import BusyMachine, computing_us, falls
from opt_trt.plugins.tune.timing import ATTEMPTS, ROUNDS, TimingCache, time_interleaved

A1, A2, B = Tactic("a1", "a"), Tactic("a2", "a"), Tactic("b", "b")


def test_each_bucket_takes_the_fastest_tactic_of_the_best_layout():
    rows = [
        [Timing(A1, 10.0), Timing(A2, 20.0), Timing(B, 15.0)],
        [Timing(A1, 40.0), Timing(A2, 30.0), Timing(B, 100.0)],
    ]
    choice = choose(rows, [1.0, 1.0])
    assert (choice.layout, [t.name for t in choice.tactics]) == ("a", ["a1", "a2"])


def test_a_slow_large_bucket_does_not_outvote_small_ones():
    rows = [[Timing(A1, 10.0), Timing(B, 30.0)], [Timing(A1, 10_000.0), Timing(B, 9_000.0)]]
    assert choose(rows, [1.0, 1.0]).layout == "a"


def test_weights_decide_which_bucket_counts():
    rows = [[Timing(A1, 10.0), Timing(B, 30.0)], [Timing(A1, 10_000.0), Timing(B, 9_000.0)]]
    assert choose(rows, [0.0, 1.0]).layout == "b"


def test_a_layout_that_cannot_serve_every_bucket_cannot_win():
    rows = [[Timing(A1, 1.0), Timing(B, 9.0)], [Timing(A1, None, "too many tokens"), Timing(B, 9.0)]]
    assert choose(rows, [1.0, 1.0]).layout == "b"


def test_a_tie_goes_to_the_earlier_tactic():
    assert choose([[Timing(A1, 5.0), Timing(A2, 5.0)]], [1.0]).tactics == (A1,)


def test_opt_num_tokens_weighs_its_own_bucket_only():
    assert bucket_weights(None) == [1.0] * (len(BUCKETS) + 1)
    assert bucket_weights(1) == [1.0, 0, 0, 0, 0, 0, 0]
    assert bucket_weights(5) == [0, 0, 1.0, 0, 0, 0, 0]
    assert bucket_weights(9999) == [0, 0, 0, 0, 0, 0, 1.0]


def nothing(name, result):
    """Every result is right."""


def test_a_cached_time_decides_without_timing(tmp_path):
    cache = TimingCache("device")
    cache.measure("problem", {"x": lambda: None}, lambda: nothing)
    cache.save(tmp_path / "model.cache")
    again = TimingCache.load("device", tmp_path / "model.cache")

    def must_not_run():
        raise AssertionError("timed in spite of the cache")

    assert again.measure("problem", {"x": must_not_run}, lambda: nothing) == cache.times["device | problem"]


def test_another_device_is_timed_anew(tmp_path):
    cache = TimingCache("one")
    cache.measure("problem", {"x": lambda: None}, lambda: nothing)
    cache.save(tmp_path / "model.cache")
    other = TimingCache.load("other", tmp_path / "model.cache")
    timed = []
    other.measure("problem", {"x": lambda: timed.append("x")}, lambda: nothing)
    assert timed
    assert sorted(json.loads(json.dumps(other.times))) == ["one | problem", "other | problem"]


def test_of_two_builds_at_once_the_second_keeps_what_the_first_has_timed(tmp_path):
    first, second = (TimingCache("d", {"d | both": {"x": us}, f"d | {us}": {"x": us}}) for us in (1.0, 2.0))
    first.times["d | both"]["y"] = 1.5
    for cache in (first, second):
        cache.join(tmp_path / "timing.cache").save(tmp_path / "timing.cache")
    found = TimingCache.load("d", tmp_path / "timing.cache").times
    assert found == {"d | both": {"x": 1.0, "y": 1.5}, "d | 1.0": {"x": 1.0}, "d | 2.0": {"x": 2.0}}


def test_a_missing_timing_cache_is_empty_and_a_damaged_one_is_named(tmp_path):
    assert TimingCache.load("d", tmp_path / "none").times == {}
    (tmp_path / "bad").write_text('{"d | p": [1]}')
    with pytest.raises(UserError, match="bad is not a timing cache"):
        TimingCache.load("d", tmp_path / "bad")


@pytest.mark.parametrize("content", [b"\x00\xff timings of TensorRT", b"[1]", b""])
def test_what_is_no_timing_cache_is_not_replaced(tmp_path, content, capsys):
    (tmp_path / "model.cache").write_bytes(content)
    TimingCache("d", {"d | p": {"x": 1.0}}).save(tmp_path / "model.cache")
    assert (tmp_path / "model.cache").read_bytes() == content
    assert "model.cache is not a timing cache of the embedded backend: it stays as it is" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "model.cache"]


def test_candidates_take_turns_and_each_keeps_its_best():
    order = []
    times = time_interleaved({"x": lambda: order.append("x"), "y": lambda: order.append("y")}, nothing)
    assert order[:4] == ["x", "y", "x", "y"]
    assert set(times) == {"x", "y"} and min(times.values()) > 0


def test_the_first_result_of_each_candidate_is_checked():
    checked = []
    time_interleaved({"x": lambda: 1, "y": lambda: 2}, lambda name, result: checked.append((name, result)))
    assert checked == [("x", 1), ("y", 2)]


def test_a_wrong_candidate_is_not_remembered():
    def refuse(name, result):
        raise ArithmeticError(name)

    cache = TimingCache("device")
    with pytest.raises(ArithmeticError, match="x"):
        cache.measure("problem", {"x": lambda: 1}, lambda: refuse)
    assert cache.times == {}


def test_who_takes_long_and_twice_as_long_as_the_best_has_one_turn(monkeypatch):
    monkeypatch.setattr("opt_trt.plugins.tune.timing.LONG_US", 0.0)
    turns = []
    time_interleaved({"slow": lambda: (turns.append("slow"), time.sleep(0.02)), "fast": lambda: None}, nothing)
    assert turns == ["slow"]


@pytest.mark.parametrize(
    ("flops_per_token", "max_num_tokens", "tokens"),
    [
        (10**6, 8192, [1, 4, 8, 16, 64, 256, 512]),
        (40 * 10**6, 8192, [1, 4, 8, 16, 50, 65, 257]),  # 2 GFLOP are 50 tokens
        (10**9, 8192, [1, 2, 5, 9, 17, 65, 257]),  # never outside of the bucket
        (10**6, 30, [1, 4, 8, 16, 30, 30, 30]),
    ],
)
def test_a_bucket_is_timed_at_its_largest_step_that_does_not_take_long(flops_per_token, max_num_tokens, tokens):
    assert representatives(flops_per_token, max_num_tokens) == tokens


@pytest.mark.parametrize(
    ("n", "k", "tokens", "timed"),
    [
        (768, 3072, 512, 768),
        (50272, 768, 25, 50272),
        (50272, 768, 65, 19456),  # 2 GFLOP are 20,032 outputs
        (50272, 768, 257, 4096),
        (36864, 9216, 257, 1024),  # the least
        (500, 9216, 257, 500),
    ],
)
def test_a_product_whose_bucket_takes_long_is_timed_in_part(n, k, tokens, timed):
    problem = GemmProblem("head", n, k, "float16", "float16", False, False)
    part = affordable(problem, tokens)
    assert part == replace(problem, n=timed)


class Disturbed:
    """A machine on which calls take the given times, one after another, by its usual clock, and 5 µs by the other."""

    def __init__(self, times_us, busy=False):
        self.times_us, self.busy = iter(times_us), busy

    def cache(self):
        return TimingCache("d", clock=self.usual, busy=BusyMachine(lambda: self.busy, self.other))

    def usual(self, run):
        return next(self.times_us), run()

    def other(self, run):
        return 5.0, run()


STEADY = (9.0, *(1.0,) * ROUNDS)  # the first call of a candidate takes longer
SPREAD = (9.0, *(1.0, 9.0) * (ROUNDS // 2), 9.0)


@pytest.mark.parametrize(
    ("times_us", "busy", "expected", "spoilt"),
    [
        (STEADY, False, 1.0, False),
        (SPREAD + STEADY, False, 1.0, False),
        (SPREAD * ATTEMPTS, False, 5.0, True),
        (STEADY * ATTEMPTS, True, 5.0, True),
    ],
)
def test_times_that_spread_are_measured_again_and_then_by_another_clock(times_us, busy, expected, spoilt):
    cache = Disturbed(times_us, busy).cache()
    assert cache.measure("p", {"x": lambda: None}, lambda: nothing) == {"x": expected}
    assert cache.spoilt == ({"d | p"} if spoilt else set())


def test_times_of_a_busy_machine_are_not_kept(tmp_path):
    cache = Disturbed(SPREAD * ATTEMPTS).cache()
    cache.measure("p", {"x": lambda: None}, lambda: nothing)
    cache.times["d | q"] = {"x": 2.0}
    cache.join(tmp_path / "timing.cache").save(tmp_path / "timing.cache")
    assert TimingCache.load("d", tmp_path / "timing.cache").times == {"d | q": {"x": 2.0}}


def test_times_that_are_measured_anew_replace_those_of_the_file(tmp_path):
    TimingCache("d", {"d | p": {"x": 300.0, "y": 1.0}}).save(tmp_path / "timing.cache")
    TimingCache("d", {"d | p": {"x": 16.0}}).join(tmp_path / "timing.cache", True).save(tmp_path / "timing.cache")
    assert TimingCache.load("d", tmp_path / "timing.cache").times == {"d | p": {"x": 16.0, "y": 1.0}}


def test_doubted_times_are_measured_again_although_they_are_cached():
    cache = Disturbed(STEADY).cache()
    cache.measure("p", {"x": lambda: None}, lambda: nothing)
    assert cache.measure("p", {"x": lambda: None}, lambda: nothing, is_doubted=True) == {"x": 5.0}


def test_settled_times_are_not_doubted():
    cache = Disturbed(()).cache()
    cache.times["d | p"], cache.settled = {"x": 1.0}, frozenset({"d | p"})
    assert cache.measure("p", {"x": lambda: None}, lambda: nothing, is_doubted=True) == {"x": 1.0}


@pytest.mark.parametrize(
    ("times_us", "doubtful"),
    [
        ((22192.0, 15586.0, 10097.0), True),
        ((5663.0, 12418.0, 11758.0, 7310.0), True),
        ((75.4, 70.9, 82.9), False),
        ((1.0, 2.0, 3.0), False),
        ((), False),
    ],
)
def test_times_that_fall_as_tokens_grow_are_doubted(times_us, doubtful):
    assert falls(times_us) == doubtful


def test_the_time_of_one_thread_leaves_out_what_it_waits():
    threads = []
    elapsed_us, _ = computing_us(lambda: (threads.append(torch.get_num_threads()), time.sleep(0.2)))
    assert threads == [1]
    assert elapsed_us < 200_000
