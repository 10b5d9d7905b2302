"""Open an Alpa folder: one NumPy file per tensor, which is named after its metaseq key without an extension.

Alpa writes files such as `<name>-np/decoder.embed_tokens.weight`, from metaseq's or from Hugging Face's weights. This
module parses their headers itself, so that no file is ever unpickled.
"""

from __future__ import annotations

import ast
import math
import warnings
from pathlib import Path
from typing import Any

import torch

from opt_trt.errors import UserError, spelled
from opt_trt.host.files import open_regular
from opt_trt.sources.hf_config import read_hf_config
from opt_trt.sources.listed import ListedSource, listed_source
from opt_trt.sources.opt import EMBEDDING, HEAD, PROJECT_IN, PROJECT_OUT
from opt_trt.sources.published import published_config
from opt_trt.sources.safe_pickle import LARGEST, MOST_DIMENSIONS
from opt_trt.sources.stored import Stored, contiguous_stride

MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # size of the number that says how long the header is, by version of the format
LONGEST_HEADER = 10_000  # NumPy's own limit, because longer literals could exhaust the parser
DTYPES = {"<f8": torch.float64, "<f4": torch.float32, "<f2": torch.float16}
RENAMED = {
    "decoder.layer_norm.weight": "decoder.final_layer_norm.weight",
    "decoder.layer_norm.bias": "decoder.final_layer_norm.bias",
    "decoder.project_in_dim.weight": PROJECT_IN,
    "decoder.project_out_dim.weight": PROJECT_OUT,
    "decoder.output_projection.weight": HEAD,
}


def recognizes(directory: Path) -> bool:
    """Return whether this is an Alpa folder, or a directory that contains Alpa folders."""
    return (directory / EMBEDDING).is_file() or bool(_folders(directory))


def open_source(directory: Path) -> ListedSource:
    """Open the folder; `UserError` names files that are not NumPy files, and tensors that are not the model's.

    Sizes come from a `config.json` beside the files, or from the published model if there is none.
    """
    if not (directory / EMBEDDING).is_file():
        found = ", ".join(str(folder) for folder in _folders(directory))
        raise UserError(f"{directory} holds folders of Alpa's; give one of them as {spelled('model_dir')}: {found}")
    paths = [path for path in sorted(directory.iterdir()) if path.name.startswith("decoder.") and path.is_file()]
    tensors = {RENAMED.get(path.name, path.name): _header(path) for path in paths}
    path = directory / "config.json"
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = read_hf_config(path) if path.exists() else published_config(shapes, directory)
    return listed_source(config, tensors.items(), directory)


def _folders(directory: Path) -> list[Path]:
    if (directory / "config.json").exists():
        return []
    return sorted(path.parent for end in ("-np", "_np") for path in directory.glob(f"*{end}/{EMBEDDING}"))


def _header(path: Path) -> Stored:
    """Read the header of a `.npy` file: type, shape and offset of its data; see NumPy's `numpy.lib.format`."""
    with open_regular(path) as file:
        start = file.read(len(MAGIC) + 2)
        width = LENGTH_BYTES.get(start[-2]) if start[:-2] == MAGIC else None
        if width is None:
            raise UserError(f"{path} is no NumPy file; fetch it again, or remove it if it is not part of the model")
        length = int.from_bytes(file.read(width), "little")
        text = file.read(min(length, LONGEST_HEADER))
        offset = file.tell()
    values = _literal(text)
    dtype, shape, transposed = values.get("descr"), values.get("shape"), values.get("fortran_order")
    if not isinstance(shape, tuple) or not 0 < len(shape) <= MOST_DIMENSIONS or not all(map(_is_size, shape)):
        raise UserError(f"{path} has a damaged NumPy header; fetch it again")
    if not (isinstance(dtype, str) and dtype in DTYPES):
        raise UserError(f"{path} holds {dtype!r}; only floats ({', '.join(DTYPES)}) are read, nothing is unpickled")
    stride = tuple(reversed(contiguous_stride(shape[::-1]))) if transposed else contiguous_stride(shape)
    stored = Stored(path, path.name, DTYPES[dtype], shape, offset, stride)
    expected, found = offset + math.prod(shape) * stored.dtype.itemsize, path.stat().st_size
    if found != expected:
        raise UserError(f"{path} must have {expected} bytes, found {found}; fetch it again")
    return stored


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < LARGEST


def _literal(text: bytes) -> dict[str, Any]:
    """Parse the dictionary of literals in a header; return an empty one if the header is damaged."""
    try:
        with warnings.catch_warnings():  # of odd literals
            warnings.simplefilter("ignore")
            values = ast.literal_eval(text.decode("latin1"))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: a list as a key
        return {}
    return values if isinstance(values, dict) else {}
