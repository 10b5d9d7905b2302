"""The published sizes of OPT, and the layout of flat vectors that follows from a size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain

from opt_trt.sources import published
from opt_trt.sources.metaseq.pt_file import FLAT, Layout
from opt_trt.sources.opt import OFFSET_ROWS
from opt_trt.sources.published import NAMES

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Size:
    """The hyper-parameters that determine shapes; `vocab_size` 0 is unknown and follows from a vector's length."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int
    vocab_size: int = 50272
    max_position_embeddings: int = 2048
    do_layer_norm_before: bool = True


PUBLISHED = tuple(
    Size(
        NAMES[key],
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.ffn_dim,
        do_layer_norm_before=config.do_layer_norm_before,
    )
    for key, config in published.PUBLISHED.items()
)


def flat_layout(size: Size, parts: int, layered: bool) -> Layout:
    """Return the layout of the flat vectors of one of `parts`: one vector, or (`layered`) one per layer and one more.

    The layer norm after the last layer is the last module, so it follows the layers in a vector that holds them.
    """
    hidden = size.hidden_size
    embeddings: Shapes = [
        ("decoder.embed_tokens.weight", (size.vocab_size // parts, hidden)),
        ("decoder.embed_positions.weight", (size.max_position_embeddings + OFFSET_ROWS, hidden)),
    ]
    layers = [_layer(f"decoder.layers.{layer}.", size, parts) for layer in range(size.num_hidden_layers)]
    norm = _pair("decoder.layer_norm", (hidden,))
    if not layered:
        return {FLAT: [*embeddings, *chain.from_iterable(layers), *norm]}
    return {FLAT: embeddings + norm} | {f"decoder.layers.{layer}.{FLAT}": shapes for layer, shapes in enumerate(layers)}


def with_vocabulary(size: Size, parts: int, layered: bool, length: int) -> Size:
    """Return the size with the vocabulary that gives a part's outer vector `length` elements, padding included."""
    rest = elements(flat_layout(size, parts, layered)[FLAT])
    return replace(size, vocab_size=max(0, length - rest) // size.hidden_size * parts)


def elements(shapes: Shapes) -> int:
    """Return the number of elements of all tensors together."""
    return sum(math.prod(shape) for _, shape in shapes)


def _layer(prefix: str, size: Size, parts: int) -> Shapes:
    hidden, rows, ffn = size.hidden_size, size.hidden_size // parts, size.ffn_dim // parts
    return [
        *_pair(f"{prefix}self_attn.qkv_proj", (3 * rows, hidden)),
        (f"{prefix}self_attn.out_proj.weight", (hidden, rows)),
        (f"{prefix}self_attn.out_proj.bias", (hidden,)),
        *_pair(f"{prefix}self_attn_layer_norm", (hidden,)),
        *_pair(f"{prefix}fc1", (ffn, hidden)),
        (f"{prefix}fc2.weight", (hidden, ffn)),
        (f"{prefix}fc2.bias", (hidden,)),
        *_pair(f"{prefix}final_layer_norm", (hidden,)),
    ]


def _pair(module: str, weight: tuple[int, ...]) -> Shapes:
    return [(f"{module}.weight", weight), (f"{module}.bias", weight[:1])]
