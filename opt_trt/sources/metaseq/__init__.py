"""Open a metaseq OPT: `.pt` files of one or more model-parallel parts, of named tensors or of flat vectors.

What the files hold decides how they are read; their names only say which part and shard they are.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from opt_trt.sources.hf import LAYOUTS
from opt_trt.sources.hf_config import read_hf_config
from opt_trt.sources.listed import ListedSource, check_tensors
from opt_trt.sources.metaseq.agree import compare_replicated
from opt_trt.sources.metaseq.join import join
from opt_trt.sources.metaseq.parts import named_parts, read_grid
from opt_trt.sources.metaseq.reading import Joined
from opt_trt.sources.metaseq.settings import Statement, agreed, measure, opt_config
from opt_trt.sources.opt import EMBEDDING, HEAD


def recognizes(directory: Path) -> bool:
    """Whether there are `.pt` files and no Hugging Face weights, beside which such files are of something else."""
    return any(directory.glob("*.pt")) and not any((directory / name).exists() for name in LAYOUTS)


def open_source(directory: Path) -> ListedSource:
    """Open the directory; `UserError` names whatever is missing, double, of two models, damaged or not this OPT."""
    grid = read_grid(directory)
    beside = directory / "config.json"
    config = read_hf_config(beside) if beside.exists() else None
    stated = [Statement(f"the training configuration in {file.path}", file.settings) for row in grid for file in row]
    stated += [Statement(str(beside), asdict(config))] if config else []
    tensors = join(named_parts(grid, agreed(stated)), directory)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if config:
        agreed([measure(shapes, directory), *stated])
    else:
        config = replace(opt_config(shapes, stated, directory), tie_word_embeddings=_drop_tied_head(tensors))
    check_tensors(config, tensors, f"the tensors in {directory} are not those of an OPT with their sizes")
    note = compare_replicated(tensors)
    return ListedSource(config, tensors, (note,) if note else ())


def _drop_tied_head(tensors: dict[str, Joined]) -> bool:
    """Whether the head is the embedding; a copy of it is left out."""
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if not head or not embedding or head.shape != embedding.shape:
        return True
    if not all(torch.equal(a, b) for a, b in zip(head.blocks(), embedding.blocks(), strict=True)):
        return False
    del tensors[HEAD]
    return True
