"""The model of `_models` in the layouts of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from tests.unit._models import Model, Tensors

COLUMNS = ("out_proj.weight", "fc2.weight")  # FlagAI cuts these along input features
ROWS = ("embed_tokens.", "q_proj.", "k_proj.", "v_proj.", "fc1.")  # and these along output features
FLAGAI_OUTER = {"embed_tokens": "wte", "embed_positions": "wpe", "final_layer_norm": "ln_f"}
FLAGAI_INNER = {
    "self_attn_layer_norm": "ln_1", "final_layer_norm": "ln_2", "self_attn.out_proj": "attn.c_proj",
    "fc1": "mlp.c_fc", "fc2": "mlp.c_proj",
}  # fmt: skip


def converted(model_dir: Path, out: Path, **flags: Any) -> dict[str, bytes]:
    """Write the files of a checkpoint."""
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(out), log_level="warning", **flags))
    return {path.name: path.read_bytes() for path in out.iterdir()}


def write_config(model: Model, directory: Path) -> Path:
    """Create the directory with the model's `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(model.config))
    return directory


def npy(tensor: torch.Tensor, descr: str, fortran_order: bool = False, version: int = 1) -> bytes:
    """Write a `.npy` file by the format's specification: magic, version, length of the header, header, data."""
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran_order}, 'shape': {tuple(tensor.shape)}, }}"
    text = text.ljust(117) + "\n"
    data = (tensor.T if fortran_order else tensor).contiguous().numpy().tobytes()
    length = len(text).to_bytes({1: 2, 2: 4, 3: 4}[version], "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + data


def flagai_parts(tensors: Tensors, ranks: int) -> list[Tensors]:
    """Return the tensors that FlagAI's splitter stores for each rank, under Hugging Face's names."""
    return [{name: _cut(name, tensor, ranks, rank) for name, tensor in tensors.items()} for rank in range(ranks)]


def flagai_names(tensors: Tensors, ranks: int) -> list[Tensors]:
    """Return the same tensors under FlagAI's own names, with q, k and v in one tensor."""
    return [_own_names(part) for part in flagai_parts(tensors, ranks)]


def _cut(name: str, tensor: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    if any(part in name for part in ROWS):
        return tensor.chunk(ranks, 0)[rank].clone()
    if name.endswith(COLUMNS):
        return tensor.chunk(ranks, 1)[rank].clone()
    return tensor.clone()


def _own_names(part: Tensors) -> Tensors:
    own: Tensors = {}
    for name, tensor in part.items():
        *path, kind = name.removeprefix("model.decoder.").split(".")
        if path[0] != "layers":
            own[f"transformer.{FLAGAI_OUTER.get(path[0], path[0])}.{kind}"] = tensor
            continue
        block, module = f"transformer.h.{path[1]}", ".".join(path[2:])
        if module in FLAGAI_INNER:
            own[f"{block}.{FLAGAI_INNER[module]}.{kind}"] = tensor
        elif module == "self_attn.q_proj":
            qkv = [part[name.replace("q_proj", projection)] for projection in ("q_proj", "k_proj", "v_proj")]
            own[f"{block}.attn.c_attn.{kind}"] = torch.cat(qkv)
    return own
