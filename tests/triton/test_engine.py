"""The decoder of a GPU's engine says what transformers says: its programs, buckets and captured steps, uncompiled."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from transformers import OPTForCausalLM

from opt_trt.backends.inductor.decoder.program_table import CONTEXT, HALF_CONTEXT
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.weight_only import integers
from opt_trt.quant import MODES
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.triton._engine import uncompiled
from tests.unit._reference_decoder import random_model

PROMPTS = ((5, 9, 17), (40, 3, 8, 22, 31, 7), (11,))
LIMITS = {"max_batch_size": 4, "max_num_tokens": 12, "max_seq_len": 16, "tokens_per_block": 4}
POOL = KvCacheLimit(max_tokens=64)
slow = pytest.mark.slow


def oracle(model_dir):
    """The weights as the engine stores them, computed in fp32."""
    return OPTForCausalLM.from_pretrained(model_dir, dtype=torch.float16).float().eval().requires_grad_(False)


def greedy(model, prompt, tokens):
    """The oracle's next tokens."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_tokens_are_transformers_whatever_is_in_flight(tmp_path, device):
    model_dir = random_model("pre-norm", tmp_path / "model")
    engine, model = uncompiled(model_dir, tmp_path / "checkpoint", HALF_CONTEXT, device, **LIMITS), oracle(model_dir)
    requests = [Request(prompt, tokens) for prompt, tokens in zip(PROMPTS, (4, 2, 2), strict=True)]
    results = generate(DecoderSession(engine.decoder, POOL), requests)
    expected = [greedy(model, request.prompt_ids, request.max_new_tokens) for request in requests]
    assert [result.output_ids for result in results] == expected
    assert engine.used() == {
        "embedding", "layer_half_context_16", "layer_generation_4", "layer_generation_1", "head_4", "head_1"
    }  # fmt: skip
    # Three sequences in a step of four; another such, begun before two of them had ended; then one alone.
    assert [step.replays for step in engine.captured] == [2, 1]

    [again] = generate(DecoderSession(engine.decoder, POOL), requests[:1])  # another cache: captured anew
    assert again.output_ids == expected[0]
    assert [step.replays for step in engine.captured] == [2, 1, 3]


@pytest.mark.parametrize(
    ("kind", "context"), [("post-norm", CONTEXT), pytest.param("pre-norm", HALF_CONTEXT, marks=slow)]
)
def test_logits_of_prompts_and_of_new_tokens_are_transformers(kind, context, tmp_path, device):
    model_dir = random_model(kind, tmp_path / "model")
    limits = LIMITS | {"max_num_tokens": 6, "gather_all_token_logits": True}
    engine, model = uncompiled(model_dir, tmp_path / "checkpoint", context, device, **limits), oracle(model_dir)
    request = Request(PROMPTS[1], 3, return_context_logits=True, return_generation_logits=True)
    [result] = generate(DecoderSession(engine.decoder, POOL), [request])
    expected = model(torch.tensor([[*request.prompt_ids, *result.output_ids]])).logits[0]
    found = torch.cat((result.context_logits, result.generation_logits[1:]))  # a prompt's last row is the first token's
    # A dozen roundings of activations to fp16 on the way, each of half a unit in the last place of the largest.
    assert (found - expected[: len(found)]).abs().max() < 2**-8 * expected.abs().max()
    assert found.device.type == "cpu"


@slow
@pytest.mark.parametrize("weight_only", ["int8", "int4"])
def test_quantized_weights_are_those_of_the_checkpoint(weight_only, tmp_path, device):
    model_dir = random_model("pre-norm", tmp_path / "model")
    engine = uncompiled(model_dir, tmp_path / "checkpoint", CONTEXT, device, weight_only, **LIMITS)
    model = dequantized(oracle(model_dir), Checkpoint(tmp_path / "checkpoint"), weight_only)
    [result] = generate(DecoderSession(engine.decoder, POOL), [Request(PROMPTS[0], 4)])
    assert result.output_ids == greedy(model, PROMPTS[0], 4)


def dequantized(model, checkpoint, weight_only):
    """The oracle with the weights the checkpoint stands for."""
    for i, layer in enumerate(model.model.decoder.layers):
        attention = layer.self_attn
        merged = {
            "attention.qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
            "attention.dense": (attention.out_proj,), "mlp.fc": (layer.fc1,), "mlp.proj": (layer.fc2,),
        }  # fmt: skip
        for name, linears in merged.items():
            q, scale = integers(checkpoint, f"transformer.layers.{i}.{name}.weight")
            parts = MODES[weight_only].dequantize(q, scale).float().chunk(len(linears))
            for linear, weight in zip(linears, parts, strict=True):
                linear.weight.copy_(weight)
    return model
