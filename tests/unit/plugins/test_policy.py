"""The model, the processor and the flags decide which tactics take part, each with a reason."""

from __future__ import annotations

import pytest
import torch

from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.tune.policy import (
    DETERMINISTIC,
    MOST_UNWIDENED,
    ROUNDED_FURTHER,
    ROUNDS,
    WIDENED,
    Policy,
    attention_reasons,
    gemm_reasons,
)

EXTRAS = frozenset({"avx512_vnni", "avx512_bf16"})
OF_FLOATS, OF_INTEGERS = {gemm.LIBRARY, *gemm.FP32}, {gemm.LIBRARY, *gemm.FP32, *gemm.FIXED16}
ADMITTED = {  # weights and model: the tactics that take part in long prompts
    ("float32", "float32"): OF_FLOATS,
    ("float16", "float16"): {*OF_FLOATS, *gemm.WORDS},
    ("bfloat16", "bfloat16"): {*OF_FLOATS, *gemm.PAIRS},
    ("int8", "float32"): OF_FLOATS,
    ("int8", "float16"): OF_INTEGERS,
    ("int4", "float16"): OF_INTEGERS,
    ("int8", "bfloat16"): {*OF_INTEGERS, *gemm.PAIRS},
    ("int4", "bfloat16"): {*OF_INTEGERS, *gemm.PAIRS},
}


def policy(**flags):
    usual = {
        "gemm": True, "attention": True, "context_fmha": True, "deterministic": False, "max_num_tokens": 8192,
        "opt_num_tokens": None, "tokens_per_block": 64, "extras": EXTRAS,
    }  # fmt: skip
    return Policy(**(usual | flags))


def admitted(weight_type, dtype, tokens=512, **flags):
    problem = GemmProblem("fc", 64, 64, weight_type, dtype, True, False)
    reasons = gemm_reasons(problem, policy(**flags), tokens)
    assert reasons.keys() == set(gemm.TACTICS)
    return {tactic for tactic, reason in reasons.items() if reason is None}, reasons


@pytest.mark.parametrize("types", ADMITTED, ids="-".join)
def test_nothing_is_rounded_further_than_the_model_says(types):
    assert admitted(*types)[0] == ADMITTED[types]
    assert admitted(*types, extras=frozenset())[0] == OF_FLOATS


@pytest.mark.parametrize("types", ADMITTED, ids="-".join)
def test_a_tactic_that_rounds_only_batched_tokens_is_not_deterministic(types):
    found, reasons = admitted(*types, deterministic=True)
    assert found == ADMITTED[types] - {gemm.LIBRARY, *gemm.PAIRS, *gemm.WORDS}
    assert all(reasons[tactic] == ROUNDS for tactic in (*gemm.PAIRS, *gemm.WORDS))


@pytest.mark.parametrize("tokens", [1, 16, MOST_UNWIDENED + 1])
def test_words_are_made_of_weights_for_many_tokens_only(tokens):
    found, reasons = admitted("float16", "float16", tokens)
    assert (gemm.WORDS[0] in found) == (tokens > MOST_UNWIDENED) == (reasons[gemm.WORDS[0]] != WIDENED)


@pytest.mark.parametrize("tokens", [1, 2])
def test_bytes_are_made_of_activations_of_several_tokens_where_they_are_asked_for(tokens):
    found, _ = admitted("int8", "float16", tokens, context_int8=True)
    assert found - OF_INTEGERS == (set(gemm.FIXED8) if tokens > 1 else set())
    assert admitted("int8", "float16", tokens)[1][gemm.FIXED8[0]] == ROUNDED_FURTHER


def test_without_the_gemm_plugin_the_library_is_left():
    assert admitted("float16", "float16", gemm=False)[0] == {gemm.LIBRARY}


def admitted_to_attention(phase="context", head_size=64, dtype=torch.bfloat16, **flags):
    problem = AttentionProblem(phase, 12, head_size, dtype, 64, 512, 512)
    reasons = attention_reasons(problem, policy(**flags))
    assert reasons.keys() == set(attention.TACTICS)
    return {tactic for tactic, reason in reasons.items() if reason is None}, reasons


def test_attention_is_fused_over_many_queries_and_rounded_in_models_of_bfloat16():
    unfused = {attention.LIBRARY, attention.UNFUSED}
    assert admitted_to_attention()[0] == {*unfused, *attention.FUSED}
    assert admitted_to_attention(extras=frozenset())[0] == {*unfused, attention.FLASH}
    for dtype in (torch.float32, torch.float16):
        assert admitted_to_attention(dtype=dtype)[0] == {*unfused, attention.FLASH}
    assert admitted_to_attention("generation")[0] == unfused == admitted_to_attention(head_size=20)[0]


def test_flags_keep_attention_s_tactics_out_by_name():
    unfused, reasons = admitted_to_attention(context_fmha=False)
    assert unfused == {attention.LIBRARY, attention.UNFUSED}
    assert {reasons[tactic] for tactic in attention.FUSED} == {"--context_fmha disable"}
    assert admitted_to_attention(attention=False)[0] == {attention.LIBRARY}
    found, reasons = admitted_to_attention(deterministic=True)
    assert found == {attention.UNFUSED}
    assert {reasons[tactic] for tactic in (attention.LIBRARY, *attention.FUSED)} == {DETERMINISTIC}
