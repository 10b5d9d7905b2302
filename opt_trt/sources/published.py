"""The published sizes of OPT, for sources that have no `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.sources.opt import OFFSET_ROWS, POSITIONS, OptConfig

SIZES = {  # name: hidden_size, num_hidden_layers, num_attention_heads
    "OPT-125M": (768, 12, 12),
    "OPT-350M": (1024, 24, 16),
    "OPT-1.3B": (2048, 24, 32),
    "OPT-2.7B": (2560, 32, 32),
    "OPT-6.7B": (4096, 32, 32),
    "OPT-13B": (5120, 40, 40),
    "OPT-30B": (7168, 48, 56),
    "OPT-66B": (9216, 64, 72),
    "OPT-175B": (12288, 96, 96),
}


def _published(hidden_size: int, num_hidden_layers: int, num_attention_heads: int) -> OptConfig:
    return OptConfig(
        vocab_size=50272,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        ffn_dim=4 * hidden_size,
        max_position_embeddings=2048,
        word_embed_proj_dim=hidden_size,
        do_layer_norm_before=True,
        remove_final_layer_norm=False,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )


NAMES = {size[:2]: name for name, size in SIZES.items()}  # by hidden_size and num_hidden_layers, like PUBLISHED
PUBLISHED: dict[tuple[int, int], OptConfig] = {size[:2]: _published(*size) for size in SIZES.values()}
PUBLISHED[1024, 24] = replace(PUBLISHED[1024, 24], word_embed_proj_dim=512, do_layer_norm_before=False)


def published_config(shapes: Mapping[str, tuple[int, ...]], directory: Path) -> OptConfig:
    """Return the published OPT with the width and depth of these tensors; `UserError` if there is none."""
    hidden = (shapes.get(POSITIONS) or (OFFSET_ROWS, 0))[-1]
    layers = len({name.split(".")[2] for name in shapes if name.startswith("decoder.layers.")})
    if (hidden, layers) not in PUBLISHED:
        sizes = ", ".join(f"{width} x {depth}" for width, depth in PUBLISHED)
        raise UserError(
            f"{directory} holds {layers} layers of hidden size {hidden}, which is no published OPT ({sizes}); put the "
            "config.json of its Hugging Face version beside them"
        )
    return PUBLISHED[hidden, layers]
