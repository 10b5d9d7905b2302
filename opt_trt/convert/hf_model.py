"""A checkpoint's model as a Hugging Face source: its configuration, and its tensors by Hugging Face's names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from opt_trt.checkpoint.whole_model import WholeModel
from opt_trt.checkpoint.writer import TensorSpec
from opt_trt.errors import UserError
from opt_trt.model.config import ModelConfig
from opt_trt.sources.canonical import canonical_parts
from opt_trt.sources.opt import HEAD, OFFSET_ROWS, POSITIONS, OptConfig, source_shapes

NORM_EPSILON = 1e-5  # transformers' OPT has no key for another value


def source_config(model: WholeModel) -> OptConfig:
    """Return the hyper-parameters as a source states them: no projections, tied if both tables are equal."""
    config = model.config
    if config.norm_epsilon != NORM_EPSILON:
        raise UserError(
            f"{model.directory} has norm_epsilon {config.norm_epsilon}, but transformers' OPT computes with "
            f"{NORM_EPSILON} only; convert the model again"
        )
    return OptConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        ffn_dim=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        word_embed_proj_dim=config.hidden_size,
        do_layer_norm_before=config.do_layer_norm_before,
        remove_final_layer_norm=config.remove_final_layer_norm,
        tie_word_embeddings=_digest(model, "transformer.vocab_embedding.weight") == _digest(model, "lm_head.weight"),
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        hidden_act=config.hidden_act,
        end_token_ids=config.end_token_ids,
    )


def source_specs(source: OptConfig, config: ModelConfig) -> dict[str, TensorSpec]:
    """Return the specs of all tensors to write, in the order of `source_tensors`; a tied head is left out."""
    shapes, dtype = source_shapes(source), getattr(torch, config.dtype)
    return {
        _hf_name(part): TensorSpec(shapes[part], dtype) for parts in _parts_by_name(source).values() for part in parts
    }


def source_tensors(model: WholeModel, source: OptConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of `source_specs`; one whole tensor of the model is in memory at a time."""
    for name, parts in _parts_by_name(source).items():
        yield from _split(model.tensor(name), parts)


def _parts_by_name(source: OptConfig) -> dict[str, tuple[str, ...]]:
    every = canonical_parts(source)
    return {name: parts for name, parts in every.items() if not (source.tie_word_embeddings and parts == (HEAD,))}


def _split(whole: torch.Tensor, parts: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Split a canonical tensor into q, k and v; put two unused rows of zeros before the position table."""
    if parts == (POSITIONS,):
        whole = torch.cat((whole.new_zeros(OFFSET_ROWS, whole.shape[1]), whole))
    for part, tensor in zip(parts, whole.chunk(len(parts)), strict=True):
        yield _hf_name(part), tensor


def _hf_name(part: str) -> str:
    return part if part == HEAD else f"model.{part}"


def _digest(model: WholeModel, name: str) -> bytes:
    """Return a hash of the values, so that two tables can be compared with one of them in memory."""
    values = model.tensor(name).contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(values.data).digest()
