"""Tactics and engines of quantized checkpoints compute what transformers computes with dequantized weights."""

from __future__ import annotations

import pytest
import torch

from opt_trt.backends.engine import map_weights, read_engine_config
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.quant import MODES
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from tests.engine._eager import eager_session, tactic_plan
from tests.engine._oracle import assert_same_or_tie, reference_ids
from tests.engine.conftest import random_prompts
from tests.engine.test_decoder import LOGITS_TOLERANCE

CASES = (("pre-norm", "int8"), ("post-norm", "int4"))  # as in `ENGINES`
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


LIBRARY = {"gemm_plugin": "disable", "gpt_attention_plugin": "disable"}


@pytest.mark.parametrize("flags", [{}, LIBRARY], ids=["own", "library"])
@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_ids_and_logits_equal_transformers_with_dequantized_weights(
    kind, precision, flags, checkpoint_of, tmp_path, oracle
):
    checkpoint = checkpoint_of(kind, precision=precision)
    session = eager_session(checkpoint, tactic_plan(checkpoint, tmp_path / "model.cache", **flags))
    assert_ids_and_logits_equal(session, dequantized(oracle(kind), precision), random_prompts((1, 5, 31, 70)))


@pytest.fixture
def stored(open_eager, engine_named):
    """The tensors that an engine of `ENGINES` stores; as its plan packs them, if it is not compiled."""

    def read(how, name):
        return map_weights(engine_named(name), 0) if how == "compiled" else open_eager(name).executor.decoder.weights

    return read


OPENED = [("compiled", CASES[0]), ("eager", CASES[1]), pytest.param("compiled", CASES[1], marks=pytest.mark.slow)]


@pytest.mark.parametrize(("how", "case"), OPENED)
def test_an_engine_stores_integers(how, case, stored):
    kind, precision = case
    ratio = linear_bytes(stored("compiled", kind)) / linear_bytes(stored(how, precision))
    assert ratio > {"int8": 3.5, "int4": 6.5}[precision]  # fp32 over integers; scales and padding take the rest


def with_quantized_head(model, weight, precision):
    """The model with the head it has behind all projections [V, H] replaced by what integers and scales stand for."""
    head = torch.nn.Linear(*weight.shape[::-1], bias=False)
    head.weight = torch.nn.Parameter(MODES[precision].dequantize(*MODES[precision].quantize(weight.float())), False)
    model.lm_head, model.model.decoder.project_out = head, None
    return model


@pytest.mark.parametrize(("how", "case"), OPENED)
def test_a_quantized_head_gives_the_logits_of_the_dequantized_one(
    how, case, checkpoint_of, open_either, stored, oracle
):
    kind, precision = case
    weight = Checkpoint(checkpoint_of(kind, precision=precision)).tensor("lm_head.weight")
    model = with_quantized_head(dequantized(oracle(kind), precision), weight, precision)
    assert_ids_and_logits_equal(open_either(how, precision), model, random_prompts((1, 31, 70)))
    tensors = stored(how, precision)
    bits = 8 * tensors["lm_head.weight"].element_size() // (1 if precision == "int8" else 2)
    assert bits == MODES[precision].bits
    assert tensors["transformer.vocab_embedding.weight"].dtype == torch.float32  # tied or not, it stays as it was


def test_the_precision_of_the_head_is_recorded(engine_named):
    assert read_engine_config(engine_named("int8")).build_config.lm_head_precision == "int8"


def linear_bytes(tensors):
    return sum(tensor.nbytes for name, tensor in tensors.items() if ".attention." in name or ".mlp." in name)
