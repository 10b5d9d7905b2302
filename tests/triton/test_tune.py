"""Tactics of a GPU are checked against the reference on a decoder's own problems, and the fastest one wins."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.plugins.gemm.cuda_layout import PADDED
from opt_trt.plugins.tune.common import TacticError
from opt_trt.plugins.tune.cuda import CudaPolicy, TuningBench, tune
from opt_trt.plugins.tune.timing import TimingCache
from tests.triton._layers import model

POLICY = CudaPolicy(gemm=True, max_sequences=2, max_num_tokens=2, max_logits=2, tokens_per_block=16)
SITES = ("qkv", "dense", "fc", "proj", "head")


class Turns:
    """A clock by which every call takes a µs longer than the one before: the first candidate is the fastest."""

    def __init__(self):
        self.calls = 0

    def __call__(self, run):
        self.calls += 1
        return float(self.calls), run()


def bench_on(device, times=None):
    return TuningBench(TimingCache("here", times or {}, Turns()), device, cold_bytes=0)


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """Every candidate runs for its check, and no more."""
    monkeypatch.setattr("opt_trt.plugins.tune.timing.ROUNDS", 0)


@pytest.fixture
def few(monkeypatch):
    """A tactic of each kind."""
    monkeypatch.setattr(gemm, "TACTICS", (gemm.SPLIT[1], gemm.GEMV[1], gemm.CUBLAS))
    monkeypatch.setattr(attention, "TACTICS", (attention.SPLIT_KEYS[1], attention.FLASH, attention.HALF_FLASH))


def test_every_bucket_and_phase_gets_its_fastest_tactic(few, device):
    where = bench_on(device)
    plan, table = tune(model("float16", "int8", True), POLICY, where)
    assert all(choice.layout == PADDED for choice in plan.gemm.values())
    assert all(problem.device == "cuda" for problem in plan.problems.values())
    assert [tactic.name for tactic in plan.gemm["qkv"].tactics] == ["split_2"] * 2  # of up to 1 and 2 tokens
    assert [tactic.name for tactic in plan.gemm["head"].tactics] == ["split_2"] * 2
    assert [tactic.name for tactic in plan.attention.tactics] == ["split_keys_2", "split_keys_2", "flash", "half_flash"]
    lines = Counter(line.site for line in table)
    assert lines == dict.fromkeys(SITES, 2) | {"attention": 4}
    assert [line.bucket for line in table if line.site == "attention"] == ["-1", "-2", "context", "context, fp16"]

    again = bench_on(device, where.cache.times)
    assert tune(model("float16", "int8", True), POLICY, again) == (plan, table)
    assert again.cache.clock.calls == 0  # a hit decides without timing


def test_a_disabled_plugin_leaves_the_library(few, device, monkeypatch):
    monkeypatch.setattr("opt_trt.plugins.tune.cuda._tune_attention", lambda *_: (None, []))
    policy = CudaPolicy(gemm=False, max_sequences=1, max_num_tokens=1, max_logits=1, tokens_per_block=16)
    plan, table = tune(model("bfloat16", None, False), policy, bench_on(device))
    assert {tactic.name for choice in plan.gemm.values() for tactic in choice.tactics} == {"cublas"}
    assert {timing.reason for line in table for timing in line.timings} == {None, "--gemm_plugin disable"}


def test_a_wrong_tactic_ends_the_build(few, device, monkeypatch):
    right = gemm.run_gemm
    monkeypatch.setattr(gemm, "run_gemm", lambda p, call, tactic, bound: right(p, call, tactic, bound) * 1.1)
    with pytest.raises(TacticError, match=r"^split_2 differs from the reference by 1\.\de-01 on gemm n=384 k=128 int4"):
        tune(model("float16", "int4", True), POLICY, bench_on(device))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "weight_type"), [("float16", None), ("float16", "int8"), ("bfloat16", "int4")])
def test_every_tactic_passes_its_check(dtype, weight_type, device):
    _, table = tune(model(dtype, weight_type, True), POLICY, bench_on(device))
    taken = {timing.tactic.name for line in table for timing in line.timings if timing.elapsed_us is not None}
    bfloat = {attention.HALF_FLASH.name} if dtype == "bfloat16" else set()
    assert taken == {tactic.name for tactic in (*gemm.TACTICS, *attention.TACTICS)} - bfloat
