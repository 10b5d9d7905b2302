"""How a recorded step is split, and what the table says of it."""

from __future__ import annotations

import pytest

from opt_trt.backends.inductor.builder.tables import profile_table
from opt_trt.backends.inductor.profiler.ceilings import Ceilings
from opt_trt.backends.inductor.profiler.step_profile import (
    LAYER_SITES,
    StepProfile,
    Work,
    norm_ns,
    split_step,
    traced_sites,
)

GEMM, ATTENTION = 0, 1


def recorded(layers, gap=2, norm=5, head=100):
    """Operators of 10, 20, 30, 40 and 50 ns, gaps between them, and norms before qkv and fc; then the head."""
    events, at = [], 1000
    for _ in range(layers):
        for site, ns in zip(LAYER_SITES, (10, 20, 30, 40, 50), strict=True):
            at += gap + norm * (site in ("qkv", "fc"))
            events.append((ATTENTION if site == "attention" else GEMM, at, at + ns))
            at += ns
    events.append((GEMM, at + gap + norm, at + gap + norm + head))
    return events


def test_a_step_is_split_into_its_operations():
    events = recorded(layers=3)
    clock = (900, 990, events[-1][2] + 7)
    assert split_step(clock, events, LAYER_SITES, 3) == {
        "embedding": 90, "qkv": 30, "attention": 60, "dense": 90, "fc": 120, "proj": 150, "head": 100,
        "norms": 7 * 5, "step": clock[2] - 900,
    }  # fmt: skip


def test_what_the_library_computes_is_not_recorded_and_stays_outside():
    sites = traced_sites({site: ["library" if site == "fc" else "fp32_1"] for site in LAYER_SITES})
    assert sites == ["qkv", "attention", "dense", "proj"]
    events = [event for i, event in enumerate(recorded(layers=2)) if i % 5 != LAYER_SITES.index("fc") or i == 10]
    parts = split_step((0, 1, 5000), events, sites, 2)
    assert (parts["proj"], parts["head"]) == (100, 100)
    assert "fc" not in parts and "norms" not in parts


def test_a_norm_is_what_a_gap_with_one_takes_longer():
    assert norm_ns(recorded(layers=4, gap=3, norm=8)[:-1]) == 8
    assert norm_ns(recorded(layers=4, gap=3, norm=0)[:-1]) == 0


def test_rates_are_bytes_and_operations_over_time_beside_the_ceilings():
    profile = StepProfile(
        context_tokens=200, steps=9, step_ns=4000.0, by_operation={"qkv": 1000.0, "head": 2000.0},
        calls={"qkv": 12, "head": 1}, work={"qkv": Work(10_000, 40_000)}, page_faults=0.5,
    )  # fmt: skip
    assert profile.outside_ns == 1000.0
    text = profile_table(profile, Ceilings(read_gb_s=40.0, gemm_gflop_s=200.0))
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert rows["qkv"] == ["qkv", "12", "1.0", "25.0%", "10.0", "25.0%", "40.0", "20.0%"]
    assert rows["outside"][-2:] == ["1.0", "25.0%"]
    assert "0.00 ms (mean of the fastest 9), 0.5 page faults" in text


@pytest.mark.parametrize("layers", [1, 2])
def test_the_parts_never_exceed_the_step(layers):
    events = recorded(layers)
    parts = split_step((900, 990, events[-1][2]), events, LAYER_SITES, layers)
    assert sum(ns for name, ns in parts.items() if name != "step") <= parts["step"]
