"""OPTs without biases, without norm weights or with gelu: their checkpoints compute what transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional
from transformers import OPTConfig, OPTForCausalLM

from opt_trt.checkpoint.reader import read_config
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.graph.decoder import Head, Layer, head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS, Embedding
from opt_trt.ops import Linear, ReferenceOps
from tests.unit._models import Model

VARIANTS: dict[str, dict[str, Any]] = {
    "opt": {},
    "no biases": {"enable_bias": False},
    "no norm weights": {"layer_norm_elementwise_affine": False},
    "neither": {"enable_bias": False, "layer_norm_elementwise_affine": False},
    "neither, post-norm": {
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "do_layer_norm_before": False,
        "word_embed_proj_dim": 8,
    },
    "gelu": {"activation_function": "gelu"},
    "galactica": {"enable_bias": False, "activation_function": "gelu", "bos_token_id": 0, "vocab_size": 50},
}
IDS = [2, 17, 5, 40, 33, 8, 1]
TOLERANCE = 1e-5  # absolute, logits of order 1: fp32 sums in another order


class GeluOps(ReferenceOps):
    """The reference with the activation that `hidden_act` gelu asks for."""

    def gemm(self, site: str, x: torch.Tensor, linear: Linear, residual: torch.Tensor | None = None) -> torch.Tensor:
        if site == "fc":
            return functional.gelu(functional.linear(x, linear.weight, linear.bias))
        return super().gemm(site, x, linear, residual)


OPS = {"relu": ReferenceOps, "gelu": GeluOps}


def logits(directory: Path, ids: list[int]) -> torch.Tensor:
    """What the decoder's graph makes of a checkpoint, for a prompt in one block of the KV cache."""
    config, weights = read_config(directory), load_file(directory / "rank0.safetensors")
    ops, count = OPS[config.hidden_act](), len(ids)
    tokens = torch.arange(count, dtype=torch.int32)  # their positions and their slots
    step = (tokens, torch.tensor([0, count]), torch.tensor([count]), torch.tensor([[0]]))
    x = Embedding(config, ops)(torch.tensor(ids), tokens, *(weights[name] for name in EMBEDDING_WEIGHTS))
    for layer in range(config.num_hidden_layers):
        cache = torch.zeros(1, 2, config.num_attention_heads, 8, config.head_size)
        x = Layer(config, ops)(x, [weights[name] for name in layer_weight_names(config, layer)], cache, step)
    return Head(config, ops)(x, tokens, [weights[name] for name in head_weight_names(config)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(tmp_path: Path, variant: str) -> None:
    if transformers.__version__ < "5" and VARIANTS[variant].get("layer_norm_elementwise_affine") is False:
        pytest.skip("transformers before 5 cannot make an OPT without norm weights")
    sizes = {
        "vocab_size": 48, "hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 2, "ffn_dim": 40,
        "num_attention_heads": 4, "max_position_embeddings": 12,
    }  # fmt: skip
    torch.manual_seed(5)
    model = OPTForCausalLM(OPTConfig(**(sizes | VARIANTS[variant]))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    convert(ConvertConfig(str(tmp_path / "model"), output_dir=str(out), dtype="float32", log_level="warning"))
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
        assert expected.abs().max() > 0.5
        assert (logits(out, IDS) - expected).abs().max() < TOLERANCE


def test_absent_biases_are_zeros_and_absent_norms_ones_and_zeros(tmp_path: Path) -> None:
    model = Model(config={"enable_bias": False, "layer_norm_elementwise_affine": False})
    model.tensors = {n: t for n, t in model.tensors.items() if not n.endswith(".bias") and "layer_norm" not in n}
    convert(ConvertConfig(str(model.write(tmp_path / "m")), output_dir=str(tmp_path / "out"), log_level="warning"))
    tensors = load_file(tmp_path / "out" / "rank0.safetensors")
    assert all(not tensor.any() for name, tensor in tensors.items() if name.endswith(".bias"))
    norms = [tensor for name, tensor in tensors.items() if name.endswith(("layernorm.weight", "ln_f.weight"))]
    assert len(norms) == 5 and all(tensor.tolist() == [1.0] * 16 for tensor in norms)


def test_a_model_without_biases_keeps_those_of_its_norms(tmp_path: Path) -> None:
    model = Model(config={"enable_bias": False})
    model.tensors = {n: t for n, t in model.tensors.items() if not n.endswith(".bias") or "layer_norm" in n}
    convert(
        ConvertConfig(
            str(model.write(tmp_path / "m")), output_dir=str(tmp_path / "out"), dtype="float32", log_level="warning"
        )
    )
    tensors = load_file(tmp_path / "out" / "rank0.safetensors")
    assert torch.equal(tensors["transformer.ln_f.bias"], model.tensors["model.decoder.final_layer_norm.bias"])
    assert not tensors["transformer.layers.0.attention.qkv.bias"].any()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_activation_is_recorded_and_decides_who_can_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], activation: str
) -> None:
    model = Model(config={"activation_function": activation}).write(tmp_path / "m")
    convert(ConvertConfig(str(model), output_dir=str(tmp_path / "out")))
    backend = {"relu": "", "gelu": " --backend tensorrt_llm"}[activation]
    out = tmp_path / "out"
    command = f"python -m opt_trt build --checkpoint_dir {out} --output_dir {out}_engine{backend}"
    assert capsys.readouterr().out.endswith(f"; next: {command}\n")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_act"] == activation
