"""An engine built with --deterministic gives the same bits whatever else is in the step."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch

from opt_trt.backends import open_engine
from opt_trt.config.scheduling import POLICIES, Scheduling
from opt_trt.host.workers import one_thread
from opt_trt.ops import Linear
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm.problem import STORED, GemmCall, GemmProblem
from opt_trt.quant import MODES
from opt_trt.runtime.generate import result_of
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.engine._random_requests import SMALL_CACHE, random_requests, run_alone, run_together
from tests.engine._tactics import run_gemm, where_supported
from tests.engine.conftest import DETERMINISTIC, KINDS, random_prompts

WEIGHTS = (("float32", None), ("float16", None), ("bfloat16", None), ("float16", "int8"), ("float16", "int4"))


FAMILIES = {"fp32": gemm.FP32, "fixed16": gemm.FIXED16}
ORDERED = sum(FAMILIES.values(), ())


def refusal(extras, family, weight_type):
    problem = GemmProblem("fc", 16, 16, weight_type, "float16", True, False)
    return gemm.refusal(FAMILIES[family][0], problem, extras)


@where_supported(("family", "weight_type"), product(FAMILIES, STORED), refusal)
def test_own_tactics_give_a_token_the_same_bits_in_any_batch(isa, family, weight_type):
    generator, family = torch.Generator().manual_seed(5), FAMILIES[family]
    n, k, layout = 131, 275, family[0].layout
    problem = GemmProblem("fc", n, k, weight_type, "float16", True, False)
    weight, scale = torch.randn(n, k, generator=generator), None
    if problem.quantized:
        weight, scale = MODES[weight_type].quantize(weight)
    packed = gemm.pack(weight.to(STORED[weight_type]) if scale is None else weight, problem, layout)
    linear = Linear(packed, scale, torch.randn(n, generator=generator))
    x = torch.randn(23, k, generator=generator)

    def run(x, tactic):
        return run_gemm(problem, GemmCall(x, linear, None), tactic, isa)

    alone = torch.cat([run(row[None], family[0]) for row in x])
    for tactic in family:
        for count in (1, 2, 7, 8, 23):
            assert torch.equal(run(x[:count], tactic), alone[:count]), (tactic.name, count)


def test_a_sequence_has_the_same_bits_alone_and_in_any_batch(open_session):
    session = open_session(DETERMINISTIC)
    requests = [Request(p, 6, return_generation_logits=True) for p in random_prompts((3, 50, 1, 20, 64, 2, 9, 33, 17))]
    for alone, together in zip([generate(session, [r])[0] for r in requests], generate(session, requests), strict=True):
        assert torch.equal(alone.generation_logits, together.generation_logits)


def test_only_tactics_that_keep_their_order_are_chosen(engine_named):
    tactics = json.loads((engine_named(DETERMINISTIC) / "config.json").read_text())["tactics"]
    assert set(tactics.pop("attention")) == {"unfused"}
    assert {name for names in tactics.values() for name in names} <= {tactic.name for tactic in ORDERED}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("reuse", [False, True])
def test_requests_that_come_and_go_say_what_they_say_alone(open_session, policy, reuse):
    shared = assert_exact(open_session(DETERMINISTIC), Scheduling(policy, 24, reuse), seed=1)
    assert shared.most_at_once > 3 and shared.waited
    assert shared.started_over == (policy == "max_utilization")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "precision"), WEIGHTS)
def test_every_precision_chunk_and_policy_says_what_it_says_alone(build_engine, kind, dtype, precision):
    engine = open_engine(build_engine(kind, dtype, precision, deterministic=True), KvCacheLimit(max_tokens=4096))
    for seed, (policy, chunk, reuse) in enumerate(product(POLICIES, (1, 7, 64), (False, True)), start=100):
        assert_exact(engine, Scheduling(policy, chunk, reuse), seed)


def assert_exact(alone, scheduling, seed):
    """Ids, beams, reasons and every bit of log-probabilities of a crowded session are those of requests alone."""
    arrivals = random_requests(seed)
    crowded = DecoderSession(alone.executor.decoder, SMALL_CACHE, scheduling)
    with one_thread():  # thousands of steps of 1 ms: two threads would wait for each other on a busy machine
        shared, answers = run_together(crowded, arrivals), run_alone(alone, arrivals)
    for sequence, expected in zip(shared.sequences, answers, strict=True):
        if sequence.finish_reason == "cancelled":
            assert sequence.output_ids == list(expected.output_ids[: len(sequence.output_ids)])
        else:
            assert result_of(sequence) == expected
    assert crowded._pool.num_free == crowded._pool.num_blocks
    return shared
