"""Join the tensors of all model-parallel parts under Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.sources.metaseq.pieces import Piece
from opt_trt.sources.metaseq.reading import JoinedTensor
from opt_trt.sources.opt import EMBEDDING, HEAD, POSITIONS, PROJECT_IN, PROJECT_OUT

FUSED = re.compile(r"(.*self_attn\.)qkv_proj(\..*)")
FUSED_ORDER = ("k_proj", "v_proj", "q_proj")  # the blocks of rows in the fused matrix of every part
LAYER = re.compile(r"layers\.\d+\.(.*)")
OUT_PROJ = re.compile(r".*self_attn\.out_proj\.weight")
IGNORED = ("version",)  # a format number

# Name without `decoder.`: Hugging Face's name, and the axis along which parts are joined (None: all parts are equal).
MODEL: dict[str, tuple[str, int | None]] = {
    "embed_tokens.weight": (EMBEDDING, 0),
    "embed_positions.weight": (POSITIONS, None),
    "layer_norm.weight": (
        "decoder.final_layer_norm.weight",
        None,
    ),  # this is the model's; every layer has one with this name, too
    "layer_norm.bias": ("decoder.final_layer_norm.bias", None),
    "project_in_dim.weight": (PROJECT_IN, None),
    "project_out_dim.weight": (PROJECT_OUT, None),
    "output_projection.weight": (HEAD, 0),
}
LAYER_AXES: dict[
    str, tuple[int | None, int | None]
] = {  # axes of weight and bias; these names are Hugging Face's as well
    "self_attn.q_proj": (0, 0),
    "self_attn.k_proj": (0, 0),
    "self_attn.v_proj": (0, 0),
    "self_attn.out_proj": (1, None),
    "self_attn_layer_norm": (None, None),
    "fc1": (0, 0),
    "fc2": (1, None),
    "final_layer_norm": (None, None),
}


def join(parts: Sequence[Mapping[str, Piece]], directory: Path) -> dict[str, JoinedTensor]:
    """Return the model's tensors; an unknown tensor keeps its name. `UserError` if parts are missing or differ."""
    _check_alike(parts)
    _check_number(parts, directory)
    split = [_without_fused(part) for part in parts]
    joined = {}
    for key in split[0]:
        name, axis = _place(key)
        if name.removeprefix("decoder.") not in IGNORED:
            pieces = tuple(part[key] for part in split)
            joined[name] = JoinedTensor(key, pieces, axis if axis in range(len(pieces[0].shape)) else None)
    return joined


def _place(key: str) -> tuple[str, int | None]:
    name = key.removeprefix("decoder.")
    if name in MODEL:
        return MODEL[name]
    layer = LAYER.fullmatch(name)
    module, _, kind = layer[1].rpartition(".") if layer else ("", "", "")
    return f"decoder.{name}", LAYER_AXES.get(module, (None, None))[kind == "bias"]


def _without_fused(part: Mapping[str, Piece]) -> dict[str, Piece]:
    pieces = {}
    for key, piece in part.items():
        fused = FUSED.fullmatch(key)
        if not fused:
            pieces[key] = piece
            continue
        rows = piece.shape[0] // len(FUSED_ORDER)
        for block, name in enumerate(FUSED_ORDER):
            pieces[f"{fused[1]}{name}{fused[2]}"] = piece.rows(block * rows, rows)
    return pieces


def _check_alike(parts: Sequence[Mapping[str, Piece]]) -> None:
    for number, part in enumerate(parts[1:], 1):
        for key in sorted(parts[0].keys() | part.keys()):
            first, other = _describe(parts[0].get(key)), _describe(part.get(key))
            if first != other:
                raise UserError(
                    f"parts 0 and {number} are of two models: {key} is {first} in {_path(parts[0])}, {other} in "
                    f"{_path(part)}; fetch them again"
                )


def _check_number(parts: Sequence[Mapping[str, Piece]], directory: Path) -> None:
    """Compare the number of parts with `out_proj`, which is `[H, H / parts]` in every part."""
    for key, piece in parts[0].items():
        if OUT_PROJ.fullmatch(key) and len(piece.shape) == 2 and len(parts) * piece.shape[1] != piece.shape[0]:
            features, inputs = piece.shape
            raise UserError(
                f"{key} is [{features}, {inputs}] in a part, so the model is in {features / inputs:g} parts; found "
                f"{len(parts)} in {directory}; fetch model_part-0 to model_part-{-(-features // inputs) - 1} into it"
            )


def _describe(piece: Piece | None) -> str:
    return f"{list(piece.shape)} {str(piece.dtype)[6:]}" if piece else "missing"


def _path(part: Mapping[str, Piece]) -> Path:
    return next(iter(part.values())).segments[0].path
