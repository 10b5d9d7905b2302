"""Attention of the GPU's kernels is the reference's on ragged steps, and so is what they leave in the cache."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from opt_trt.plugins.attention.triton_context import context_attention
from opt_trt.plugins.attention.triton_generation import generation_attention
from tests.triton._problems import Shape, attention_step

HALF, BRAIN = torch.float16, torch.bfloat16
# Results are means of values of up to 4: probabilities and results are rounded to the type, and sums of 64 to fp16.
BOUNDS = {(HALF, False): 2**-9, (HALF, True): 2**-8, (BRAIN, False): 2**-5}
CONTEXT = (
    (Shape(2, 64, 32), HALF, False), (Shape(2, 64, 32), HALF, True), (Shape(1, 80, 16), BRAIN, False),
    (Shape(1, 128, 64), HALF, False), (Shape(1, 128, 64), HALF, True), (Shape(1, 80, 7), HALF, False),
)  # fmt: skip
GENERATION = (
    (Shape(2, 64, 32), HALF), (Shape(2, 64, 32), BRAIN), (Shape(1, 80, 16), HALF), (Shape(1, 128, 64), BRAIN),
    (Shape(1, 80, 7), BRAIN),
)  # fmt: skip


def check(problem, found, used, bound):
    assert (found.cpu().float() - problem.expected).abs().max() < bound
    assert torch.equal(used.kv_cache.cpu().nan_to_num(9.0), problem.expected_cache.nan_to_num(9.0))


def attend_context(problem, half_sums, device):
    used = problem.to(device)
    step = used.step
    found = context_attention(
        used.qkv, used.kv_cache, step.slot_mapping, step.query_start, step.kv_lens, step.block_tables, half_sums
    )
    return found, used


def attend_generation(problem, splits, device):
    used = problem.to(device)
    step = used.step
    found = generation_attention(used.qkv, used.kv_cache, step.slot_mapping, step.kv_lens, step.block_tables, splits)
    return found, used


@pytest.mark.parametrize(("shape", "dtype", "half_sums"), CONTEXT, ids=str)
def test_context_attention_equals_the_reference_on_a_ragged_step(shape, dtype, half_sums, device):
    problem = attention_step(shape, dtype, lens=(5, 70, 1, 140), queries=(5, 1, 1, 67))
    check(problem, *attend_context(problem, half_sums, device), BOUNDS[dtype, half_sums])


@pytest.mark.parametrize("lens", [(64, 128), (1,), (65,), (1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1)], ids=str)
def test_prompts_may_end_anywhere_in_a_tile(lens, device):
    problem = attention_step(Shape(1, 64, 64), HALF, lens, queries=lens)
    check(problem, *attend_context(problem, False, device), BOUNDS[HALF, False])


@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize(("shape", "dtype"), GENERATION, ids=str)
def test_generation_attention_equals_the_reference_at_any_length(shape, dtype, splits, device):
    problem = attention_step(shape, dtype, lens=(1, 2, 64, 65, 200), queries=(1,) * 5)
    check(problem, *attend_generation(problem, splits, device), BOUNDS[dtype, False])


def test_scores_far_from_zero_do_not_overflow(device):
    problem = attention_step(Shape(1, 64, 32), HALF, lens=(90,), queries=(1,))
    steep = problem.qkv * 60.0
    for found, used in (
        attend_generation(replaced(problem, steep), 2, device), attend_context(replaced(problem, steep), False, device)
    ):  # fmt: skip
        assert found.isfinite().all(), used


def replaced(problem, qkv):
    return type(problem)(qkv, problem.kv_cache, problem.step, problem.expected, problem.expected_cache)


@pytest.mark.filterwarnings("ignore:invalid value")  # of the sequence whose only key is missing
@pytest.mark.parametrize("attend", [attend_context, attend_generation], ids=lambda f: f.__name__)
def test_what_has_no_slot_is_not_appended(attend, device):
    problem = attention_step(Shape(1, 64, 32), HALF, lens=(1, 40), queries=(1, 1))
    problem.step.slot_mapping[0] = -1  # as in rows that only fill a captured step
    found, used = attend(problem, 1, device)
    place = problem.step.block_tables[0, 0]
    assert used.kv_cache[place].isnan().all()  # nothing was written there, or anywhere but in the other slot
    assert used.kv_cache.isnan().sum() == problem.kv_cache.isnan().sum() - 2 * 64
    if attend is attend_generation:  # it takes the new key and value from the step
        assert (found.cpu().float() - problem.expected).abs().max() < BOUNDS[HALF, False]
