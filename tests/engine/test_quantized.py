"""Engines of quantized checkpoints compute what transformers computes with the dequantized weights."""

from __future__ import annotations

import pytest
import torch

from opt_trt.backends.engine import map_weights, read_engine_config
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.quant import MODES
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from tests.engine.conftest import random_prompts
from tests.engine.test_decoder import LOGITS_TOLERANCE, assert_same_or_tie, reference_ids

CASES = (("pre-norm", "int8"), ("post-norm", "int4"))  # a compiled engine for each value of either axis
LINEARS = ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")


def dequantized(model, precision, dtype=torch.float32):
    """The model with its layers' linears replaced by what their integers and scales stand for."""
    for name, parameter in model.named_parameters():
        if name.split(".")[-2] in LINEARS and name.endswith("weight"):
            mode = MODES[precision]
            parameter.copy_(mode.dequantize(*mode.quantize(parameter.to(dtype))))
    return model


def assert_ids_and_logits_equal(session, model, prompts):
    """Of eight new tokens, and of the prompts in front of them."""
    asked = {"return_context_logits": True, "return_generation_logits": True}
    for prompt, result in zip(prompts, generate(session, [Request(p, 8, **asked) for p in prompts]), strict=True):
        assert_same_or_tie(list(result.output_ids), *reference_ids(model, prompt, 8))
        expected = model(torch.tensor([[*prompt, *result.output_ids]])).logits[0]
        found = torch.cat((result.context_logits, result.generation_logits[1:]))
        assert (found - expected[: len(found)]).abs().max() < LOGITS_TOLERANCE


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_ids_and_logits_equal_transformers_with_dequantized_weights(kind, precision, open_session, oracle):
    session, model = open_session(kind, precision=precision), dequantized(oracle(kind), precision)
    assert_ids_and_logits_equal(session, model, random_prompts((1, 5, 31, 70)))


# Its product of int4 is proven in tests/engine/test_tactics.py, what it takes beside it on the first case.
@pytest.mark.parametrize(("kind", "precision"), [CASES[0], pytest.param(*CASES[1], marks=pytest.mark.slow)])
def test_the_library_computes_the_same(kind, precision, open_session, oracle):
    session = open_session(kind, precision=precision, gemm_plugin="disable", gpt_attention_plugin="disable")
    model = dequantized(oracle(kind), precision)
    (prompt,) = random_prompts((20,))
    (result,) = generate(session, [Request(prompt, 6)])
    assert_same_or_tie(list(result.output_ids), *reference_ids(model, prompt, 6))


@pytest.mark.parametrize(("precision", "least"), [("int8", 3.5), ("int4", 6.5)])
def test_an_engine_stores_integers(precision, least, build_engine):
    kind = dict(map(reversed, CASES))[precision]
    sizes = [linear_bytes(build_engine(kind, gather_all_token_logits=True, precision=p)) for p in (None, precision)]
    assert sizes[0] / sizes[1] > least  # fp32 over integers; scales and padding take the rest


def with_quantized_head(model, weight, precision):
    """The model with the head it has behind all projections [V, H] replaced by what integers and scales stand for."""
    head = torch.nn.Linear(*weight.shape[::-1], bias=False)
    head.weight = torch.nn.Parameter(MODES[precision].dequantize(*MODES[precision].quantize(weight.float())), False)
    model.lm_head, model.model.decoder.project_out = head, None
    return model


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_a_quantized_head_gives_the_logits_of_the_dequantized_one(
    kind, precision, checkpoint_of, build_engine, open_session, oracle
):
    flags = {"precision": precision, "lm_head_precision": precision}
    session, engine = open_session(kind, **flags), build_engine(kind, gather_all_token_logits=True, **flags)
    weight = Checkpoint(checkpoint_of(kind, precision=precision)).tensor("lm_head.weight")
    model = with_quantized_head(dequantized(oracle(kind), precision), weight, precision)
    assert_ids_and_logits_equal(session, model, random_prompts((1, 31, 70)))
    assert read_engine_config(engine).build_config.lm_head_precision == precision
    stored = map_weights(engine, 0)
    bits = 8 * stored["lm_head.weight"].element_size() // (1 if precision == "int8" else 2)
    assert bits == MODES[precision].bits
    assert stored["transformer.vocab_embedding.weight"].dtype == torch.float32  # tied or not, it stays as it was


def linear_bytes(engine):
    return sum(t.nbytes for name, t in map_weights(engine, 0).items() if ".attention." in name or ".mlp." in name)
