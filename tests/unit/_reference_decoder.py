"""The decoder's graph, run eagerly on the plain operations: a real OPT over a paged KV cache without a compiler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from opt_trt.checkpoint.reader import read_config
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.graph.decoder import Head, Layer, head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS, Embedding
from opt_trt.ops import ReferenceOps
from opt_trt.step import DecoderSpec, StepInputs, StepOutputs
from tests.unit._decoders import spec

VOCAB_SIZE = 61
KINDS = {
    "pre-norm": {"do_layer_norm_before": True, "hidden_size": 32, "word_embed_proj_dim": 32},
    "post-norm without projection": {"do_layer_norm_before": False, "hidden_size": 32, "word_embed_proj_dim": 32},
    "post-norm": {"do_layer_norm_before": False, "hidden_size": 32, "word_embed_proj_dim": 16},
}


def random_model(kind: str, directory: Path) -> Path:
    """Return a random OPT of a kind in Hugging Face format, with weights large enough that outputs differ."""
    config = OPTConfig(
        vocab_size=VOCAB_SIZE, num_hidden_layers=2, ffn_dim=48, num_attention_heads=2, max_position_embeddings=64,
        dropout=0.0, **KINDS[kind],
    )  # fmt: skip
    torch.manual_seed(3)
    model = OPTForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(directory)
    return directory


class ReferenceDecoder:
    """`Decoder` of a Hugging Face model, converted into `work`; sequences of 64 tokens at most."""

    def __init__(self, model_dir: Path, work: Path, max_batch_size: int = 16) -> None:
        convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(work), dtype="float32", log_level="warning"))
        config = read_config(work)
        tensors = load_file(work / "rank0.safetensors")
        ops = ReferenceOps()
        self._embedding, self._layer, self._head = Embedding(config, ops), Layer(config, ops), Head(config, ops)
        self._tables = [tensors[name] for name in EMBEDDING_WEIGHTS]
        self._layers = [
            [tensors[name] for name in layer_weight_names(config, layer)] for layer in range(config.num_hidden_layers)
        ]
        # the head is tied to the embedding where the checkpoint has none of its own
        self._head_weights = [tensors.get(name, self._tables[0]) for name in head_weight_names(config)]
        self.spec: DecoderSpec = spec(
            num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads, head_size=config.head_size,
            vocab_size=config.vocab_size, max_batch_size=max_batch_size, max_input_len=60, max_seq_len=64,
            max_num_tokens=64,
        )  # fmt: skip

    @torch.inference_mode()
    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        x = self._embedding(inputs.input_ids, inputs.position_ids, *self._tables)
        step = (inputs.slot_mapping, inputs.query_start, inputs.kv_lens, inputs.block_tables)
        for weights, cache in zip(self._layers, kv_cache, strict=True):
            x = self._layer(x, weights, cache, step)
        wanted = inputs.hidden_token_ids
        hidden = None if wanted is None else self._head.normed(x, wanted, self._head_weights)
        return StepOutputs(self._head(x, inputs.last_token_ids, self._head_weights), hidden)
