"""The compiled decoder computes what transformers computes."""

from __future__ import annotations

import pytest
import torch
from transformers import OPTForCausalLM

from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from tests.engine._eager import eager_session, tactic_plan
from tests.engine._oracle import assert_same_or_tie, reference_ids
from tests.engine.conftest import EAGER_OR_SLOW, ENGINES, KINDS, POSITIONS, random_prompts

LENGTHS = (1, 2, 3, 7, 16, 31, 32, 33, 64, 65, POSITIONS - 1)
LOGITS_TOLERANCE = 1e-3  # absolute, logits of order 10: fp32 sums in another order differ by 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_equal_transformers_from_one_token_to_the_last_position(kind, open_session, oracle):
    model, session = oracle(kind), open_session(kind)
    prompts = random_prompts(LENGTHS)
    new_tokens = [min(8, POSITIONS - len(p)) for p in prompts]
    results = generate(session, [Request(p, n) for p, n in zip(prompts, new_tokens, strict=True)])
    for prompt, n, result in zip(prompts, new_tokens, results, strict=True):
        assert_same_or_tie(list(result.output_ids), *reference_ids(model, prompt, n))


@pytest.mark.parametrize(
    ("how", "name"),
    [*(("compiled", name) for name in (*KINDS, "float16")), ("eager", "bfloat16"),
     pytest.param("compiled", "bfloat16", marks=pytest.mark.slow)],
)  # fmt: skip
def test_logits_equal_transformers_with_the_same_rounded_weights(how, name, open_either, oracle):
    """A post-norm model's projections are folded before rounding: transformers holds the same weights in fp32 alone."""
    case, session = ENGINES[name], open_either(how, name)
    model = oracle(case.kind, getattr(torch, case.dtype))
    for prompt in random_prompts((1, 5, 40)):
        (result,) = generate(session, [Request(prompt, 4, return_context_logits=True, return_generation_logits=True)])
        expected = model(torch.tensor([[*prompt, *result.output_ids]])).logits[0]
        found = torch.cat((result.context_logits, result.generation_logits[1:]))
        # A rounded KV cache is part of the engine's dtype and not of the oracle's: its error is bounded separately.
        bound = LOGITS_TOLERANCE if case.dtype == "float32" else 0.02 * expected.abs().max()
        assert (found - expected[: len(found)]).abs().max() < bound


@pytest.mark.parametrize("how", EAGER_OR_SLOW)
def test_bfloat16_errs_no_more_than_transformers_does(how, open_either, oracle, hf_model):
    """Against fp32 math with the same weights; prompts long enough for instructions that round activations."""
    exact, session = oracle("pre-norm", torch.bfloat16), open_either(how, "bfloat16")
    peer = OPTForCausalLM.from_pretrained(hf_model("pre-norm"), dtype=torch.bfloat16).eval().requires_grad_(False)
    own_error = peer_error = 0.0
    for prompt in random_prompts((33, 64, 90)):
        (result,) = generate(session, [Request(prompt, 1, return_context_logits=True)])
        expected = exact(torch.tensor([prompt])).logits[0]
        own_error += float((result.context_logits - expected).square().mean())
        peer_error += float((peer(torch.tensor([prompt])).logits[0].float() - expected).square().mean())
    assert 0 < own_error <= peer_error


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_gets_the_same_logits_alone_and_in_a_ragged_batch(kind, open_session):
    session = open_session(kind)
    requests = [Request(p, 6, return_generation_logits=True) for p in random_prompts((3, 50, 1, 20, 64, 2, 9, 33))]
    for alone, together in zip([generate(session, [r])[0] for r in requests], generate(session, requests), strict=True):
        assert (alone.generation_logits - together.generation_logits).abs().max() < LOGITS_TOLERANCE


def test_fp16_logits_are_rounded_to_fp16_when_asked(open_session):
    (result,) = generate(open_session("float16"), [Request((5, 6, 7), 1, return_generation_logits=True)])
    assert torch.equal(result.generation_logits, result.generation_logits.half().float())


def test_logits_are_not_rounded_by_default(open_session):
    (result,) = generate(open_session("pre-norm"), [Request((5, 6, 7), 1, return_generation_logits=True)])
    assert not torch.equal(result.generation_logits, result.generation_logits.half().float())


def assert_same_ids(session, model):
    prompts = random_prompts((1, 9, 40, 70))
    for prompt, result in zip(prompts, generate(session, [Request(p, 5) for p in prompts]), strict=True):
        assert_same_or_tie(list(result.output_ids), *reference_ids(model, prompt, 5))


@pytest.mark.parametrize("plugins", [("disable", "disable"), ("auto", "disable"), ("disable", "auto")])
def test_library_tactics_compute_the_same(plugins, checkpoint_of, tmp_path, oracle):
    flags = dict(zip(("gemm_plugin", "gpt_attention_plugin"), plugins, strict=True))
    plan = tactic_plan(checkpoint_of(), tmp_path / "model.cache", **flags)
    assert_same_ids(eager_session(checkpoint_of(), plan), oracle("pre-norm"))


def test_programs_of_library_tactics_compute_the_same(open_session, oracle):
    assert_same_ids(open_session("library"), oracle("pre-norm"))
