"""Open a metaseq OPT: `.pt` files of one or more model-parallel parts, which hold named tensors or flat vectors.

The contents of the files decide how they are read; their names only give the numbers of part and shard.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from opt_trt.sources.hf import LAYOUTS
from opt_trt.sources.hf_config import read_hf_config
from opt_trt.sources.listed import ListedSource, check_tensors
from opt_trt.sources.metaseq.agreement import compare_replicated
from opt_trt.sources.metaseq.join import join
from opt_trt.sources.metaseq.parts import named_parts, read_grid
from opt_trt.sources.metaseq.reading import JoinedTensor
from opt_trt.sources.metaseq.settings import Statement, agreed, metaseq_config, state_sizes
from opt_trt.sources.opt import EMBEDDING, HEAD


def recognizes(directory: Path) -> bool:
    """Return whether there are `.pt` files and no Hugging Face weights, which may come with other `.pt` files."""
    return any(directory.glob("*.pt")) and not any((directory / name).exists() for name in LAYOUTS)


def open_source(directory: Path) -> ListedSource:
    """Open the directory; `UserError` names files and tensors that are missing, doubled, damaged or not of this OPT."""
    grid = read_grid(directory)
    beside = directory / "config.json"
    config = read_hf_config(beside) if beside.exists() else None
    stated = [Statement(f"the training configuration in {file.path}", file.settings) for row in grid for file in row]
    stated += [Statement(str(beside), asdict(config))] if config else []
    tensors = join(named_parts(grid, agreed(stated)), directory)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if config:
        agreed([state_sizes(shapes, directory), *stated])
    else:
        config = replace(metaseq_config(shapes, stated, directory), tie_word_embeddings=_drop_tied_head(tensors))
    check_tensors(config, tensors, f"the tensors in {directory} are not those of an OPT with their sizes")
    note = compare_replicated(tensors)
    return ListedSource(config, tensors, (note,) if note else ())


def _drop_tied_head(tensors: dict[str, JoinedTensor]) -> bool:
    """Return whether the head is the embedding; remove the head from `tensors` if it is a copy of the embedding."""
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if not head or not embedding or head.shape != embedding.shape:
        return True
    if not all(torch.equal(a, b) for a, b in zip(head.blocks(), embedding.blocks(), strict=True)):
        return False
    del tensors[HEAD]
    return True
