"""Open a FlagAI directory: `pytorch_model_00.bin` and so on, each the part of one tensor-parallel rank.

Tensors have Hugging Face's names or FlagAI's own. FlagAI's own c_attn holds q, k and v as three blocks of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.sources.hf import LAYOUTS, refuse_pointer
from opt_trt.sources.hf_config import read_hf_config
from opt_trt.sources.listed import ListedSource, SourceTensor, join_names, listed_source
from opt_trt.sources.merged import Merged
from opt_trt.sources.opt import EMBEDDING
from opt_trt.sources.published import published_config
from opt_trt.sources.stored import Stored
from opt_trt.sources.torch_bin import list_torch_bin

PARTS = "pytorch_model_[0-9][0-9].bin"
BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias")  # the causal mask
OWN_NAMES = {  # FlagAI's spelling: Hugging Face's
    r"transformer\.wte\.": "decoder.embed_tokens.",
    r"transformer\.wpe\.": "decoder.embed_positions.",
    r"transformer\.ln_f\.": "decoder.final_layer_norm.",
    r"transformer\.(project_in|project_out)\.": r"decoder.\1.",
    r"transformer\.h\.(\d+)\.ln_1\.": r"decoder.layers.\1.self_attn_layer_norm.",
    r"transformer\.h\.(\d+)\.ln_2\.": r"decoder.layers.\1.final_layer_norm.",
    r"transformer\.h\.(\d+)\.attn\.c_attn\.": r"decoder.layers.\1.self_attn.qkv_proj.",
    r"transformer\.h\.(\d+)\.attn\.c_proj\.": r"decoder.layers.\1.self_attn.out_proj.",
    r"transformer\.h\.(\d+)\.mlp\.c_fc\.": r"decoder.layers.\1.fc1.",
    r"transformer\.h\.(\d+)\.mlp\.c_proj\.": r"decoder.layers.\1.fc2.",
}
FUSED = ("q_proj", "k_proj", "v_proj")  # the blocks of qkv_proj
AXES = {  # the axis along which a tensor was cut; every part holds the whole of all other tensors
    re.compile(rf"{re.escape(EMBEDDING)}|.*\.([qkv]_proj|fc1)\.(weight|bias)"): 0,
    re.compile(r".*\.(out_proj|fc2)\.weight"): 1,
}


def recognizes(directory: Path) -> bool:
    """Return whether the directory holds parts, but not the whole model as well."""
    whole = any((directory / name).exists() for name in LAYOUTS)
    return not whole and any(directory.glob(PARTS))


def open_source(directory: Path) -> ListedSource:
    """Open the directory; `UserError` names parts that are missing or that do not belong together.

    Sizes come from a `config.json` beside the parts, or from the published model if there is none.
    """
    paths = sorted(directory.glob(PARTS))
    for rank, path in enumerate(paths):
        expected = directory / f"pytorch_model_{rank:02}.bin"
        if path != expected:
            raise UserError(f"{directory} has {path.name} but not {expected.name}; fetch the parts of all ranks")
        refuse_pointer(path)
    ranks = [dict(_named(path)) for path in paths]
    for path, tensors in zip(paths, ranks, strict=True):
        if odd := sorted(tensors.keys() ^ ranks[0].keys()):
            raise UserError(f"{path} and {paths[0]} hold different tensors: {join_names(odd)}; fetch them again")
    merged = {name: Merged(tuple(tensors[name] for tensors in ranks), _axis(name)) for name in ranks[0]}
    path = directory / "config.json"
    shapes = {name: tensor.shape for name, tensor in merged.items()}
    config = read_hf_config(path) if path.exists() else published_config(shapes, directory)
    return listed_source(config, merged.items(), directory)


def _axis(name: str) -> int | None:
    return next((axis for pattern, axis in AXES.items() if pattern.fullmatch(name)), None)


def _named(path: Path) -> Iterator[tuple[str, SourceTensor]]:
    """Yield the tensors of a part under Hugging Face's names, with q, k and v as separate tensors."""
    for entry in list_torch_bin(path):
        name = entry.key.removeprefix("model.")
        for pattern, spelling in OWN_NAMES.items():
            name = re.sub(f"^{pattern}", spelling, name)
        if "qkv_proj" in name and entry.shape:
            yield from _split_qkv(name, entry)
        elif not BUFFER.fullmatch(entry.key):
            yield name, entry


def _split_qkv(name: str, fused: Stored) -> Iterator[tuple[str, SourceTensor]]:
    rows = fused.shape[0] // len(FUSED)
    for block, part in enumerate(FUSED):
        yield name.replace("qkv_proj", part), fused.rows(block * rows, (block + 1) * rows)
