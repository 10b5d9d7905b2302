"""Checkpoints for every way to cut a model, and the prompts they are tried with."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import OPTConfig, OPTForCausalLM

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.quant import MODES

# 3 layers, 131 tokens and 90 positions: neither stages nor tables divide evenly.
SIZES = {"vocab_size": 131, "num_hidden_layers": 3, "hidden_size": 256, "ffn_dim": 320, "num_attention_heads": 4}
KINDS = {
    "pre-norm": {"do_layer_norm_before": True, "word_embed_proj_dim": 256},
    "post-norm": {"do_layer_norm_before": False, "word_embed_proj_dim": 256},
    "projections": {"do_layer_norm_before": False, "word_embed_proj_dim": 128},
}
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")
SHARDINGS = ("off", "0", "1")
# fp32 sums of some hundred terms in another order, logits of order 0.5: 3e-7 was seen. Types of 16 bits add entries of
# the KV cache that round the other way, by one of 2,048 and of 256 parts.
TOLERANCE = {"float32": 5e-6, "float16": 1e-4, "bfloat16": 1e-3, "int8": 5e-6, "int4": 5e-6}


class Case(NamedTuple):
    """A checkpoint of the grid of ranks and types."""

    kind: str
    precision: str
    tp_size: int
    pp_size: int
    sharding: str

    def __str__(self) -> str:
        return "-".join(map(str, self))


GRID = [
    Case(*values)
    for values in product(KINDS, PRECISIONS, (1, 2, 4), (1, 2), SHARDINGS)
    if values[0] != "projections" or values[4] == "off"
]


def write_model(kind: str, directory: Path) -> Path:
    """Write a random model in Hugging Face format. Biases are random too, so that one that is added twice shows."""
    torch.manual_seed(5)
    model = OPTForCausalLM(OPTConfig(**SIZES, **KINDS[kind], max_position_embeddings=90, dropout=0.0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    return directory


def convert_case(case: Case, model_dir: Path, out: Path) -> Path:
    """Convert the checkpoint of a case. Quantization is deferred, so that the reader quantizes shards."""
    quantized = case.precision in MODES
    convert(
        ConvertConfig(
            model_dir=str(model_dir), output_dir=str(out), log_level="warning",
            dtype="float32" if quantized else case.precision, tp_size=case.tp_size, pp_size=case.pp_size,
            use_parallel_embedding=case.sharding != "off",
            embedding_sharding_dim=0 if case.sharding == "off" else int(case.sharding),
            **({"use_weight_only": True, "weight_only_precision": case.precision} if quantized else {}),
            defer_quantization=quantized,
        )
    )  # fmt: skip
    return out
