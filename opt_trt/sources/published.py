"""The sizes OPT was published in: shared by all sources that do not state theirs for want of a `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.sources.opt import OFFSET_ROWS, POSITIONS, OptConfig

HEADS = {  # (hidden_size, num_hidden_layers): num_attention_heads
    (768, 12): 12,  # 125M
    (1024, 24): 16,  # 350M
    (2048, 24): 32,  # 1.3B
    (2560, 32): 32,  # 2.7B
    (4096, 32): 32,  # 6.7B
    (5120, 40): 40,  # 13B
    (7168, 48): 56,  # 30B
    (9216, 64): 72,  # 66B
    (12288, 96): 96,  # 175B
}


def _published(hidden_size: int, num_hidden_layers: int) -> OptConfig:
    return OptConfig(
        vocab_size=50272,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=HEADS[hidden_size, num_hidden_layers],
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


PUBLISHED: dict[tuple[int, int], OptConfig] = {size: _published(*size) for size in HEADS}
PUBLISHED[1024, 24] = replace(PUBLISHED[1024, 24], word_embed_proj_dim=512, do_layer_norm_before=False)


def published_config(shapes: Mapping[str, tuple[int, ...]], directory: Path) -> OptConfig:
    """The published OPT with these tensors, by Hugging Face's names; `UserError` if none has this width and depth."""
    hidden = shapes.get(POSITIONS, (OFFSET_ROWS, 0))[-1]
    layers = len({name.split(".")[2] for name in shapes if name.startswith("decoder.layers.")})
    if (hidden, layers) not in PUBLISHED:
        sizes = ", ".join(f"{width} x {depth}" for width, depth in PUBLISHED)
        raise UserError(
            f"{directory} holds {layers} layers of hidden size {hidden}, no published OPT ({sizes}); put the "
            "config.json of its Hugging Face version beside them"
        )
    return PUBLISHED[hidden, layers]
