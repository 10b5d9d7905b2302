"""List the tensors of a checkpoint, an engine or an original model; a table names the function for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from opt_trt.backends.checksums import changed
from opt_trt.backends.engine import EngineConfig, map_weights, read_engine_config
from opt_trt.backends.identity import TENSORRT, identify
from opt_trt.checkpoint.reader import CONFIG_NAME, Checkpoint, read_config
from opt_trt.checkpoint.spec import packed_mode
from opt_trt.describe.headers import engine_header, model_header, source_header, tensorrt_header
from opt_trt.describe.listing import Group, ListedTensor, Listing, blocks_of, dtype_name
from opt_trt.errors import UserError
from opt_trt.host.disk import size_text
from opt_trt.host.json_file import read_json
from opt_trt.model.config import ModelConfig
from opt_trt.model.placement import is_linear
from opt_trt.sources import SOURCES, open_source, recognize
from opt_trt.sources.hf_config import hf_config_values
from opt_trt.sources.lookalikes import refuse_lookalike

PACKED_NAMES = {8: "int8", 4: "int4x2"}  # two int4 share a byte
WEIGHTS_IN_PLAN = (TENSORRT, "tensorrt")  # backends whose engines no other library can list


def list_directory(directory: Path, rank: int | None, packed_sm: int | None = None) -> Listing:
    """List the tensors of a directory, of one rank or of all; `UserError` if the kind of directory is unknown.

    `packed_sm` is the GPU in whose layout a checkpoint's weights are packed, if its `config.json` does not say it.
    """
    opener = _opener(directory)
    if packed_sm is None:
        return opener(directory, rank)
    if opener is not _list_checkpoint:
        raise UserError(
            f"{directory} is not a checkpoint, so no packed weights need a GPU; drop --packed_sm {packed_sm}"
        )
    return _list_checkpoint(directory, rank, packed_sm)


def _opener(directory: Path) -> Callable[[Path, int | None], Listing]:
    if not directory.is_dir():
        raise UserError(f"expected a directory at {directory}, found none; check the path")
    if not (directory / CONFIG_NAME).exists():
        refuse_lookalike(directory)
        if recognize(directory) is None:
            raise UserError(
                f"{directory} holds no checkpoint or engine (no {CONFIG_NAME}), and no original model of a known "
                f"format: {'; '.join(SOURCES)}"
            )
        return _list_source
    values = read_json(directory / CONFIG_NAME)
    for key, opener in OPENERS.items():
        if key in values:
            return opener
    raise UserError(
        f"{directory / CONFIG_NAME} does not describe a checkpoint, engine or original model: it has none of the keys "
        f"{', '.join(OPENERS)}; give another directory"
    )


def _list_checkpoint(directory: Path, rank: int | None, packed_sm: int | None = None) -> Listing:
    config = read_config(directory, packed_sm)
    groups = [_checkpoint_group(directory, config, r) for r in _ranks(directory, config, rank)]
    return Listing("checkpoint", model_header(config), config.to_dict(), tuple(groups))


def _checkpoint_group(directory: Path, config: ModelConfig, rank: int) -> Group:
    checkpoint, mode = Checkpoint(directory, rank, config.target_sm), packed_mode(config)
    entries = []
    for name, spec in checkpoint.spec.items():
        bits = mode.bits if mode is not None and is_linear(name) else None
        dtype = dtype_name(spec.dtype) if bits is None else PACKED_NAMES[bits]
        read = partial(_blocks, partial(checkpoint.tensor, name))
        entries.append(ListedTensor(name, dtype, spec.shape, spec.nbytes, read, bits))
    return Group(_rank_title(config, rank), tuple(entries), rank)


def _list_engine(directory: Path, rank: int | None) -> Listing:
    backend = identify(directory).backend
    if rank is not None and backend in WEIGHTS_IN_PLAN:
        raise UserError(f"{directory} is a TensorRT engine, whose tensors only TensorRT reads; drop --rank")
    if backend == TENSORRT:
        return _list_tensorrt(directory)
    engine = read_engine_config(directory)
    if backend in WEIGHTS_IN_PLAN:
        return Listing("TensorRT engine", engine_header(engine) | _on_disk(directory), engine.to_dict(), ())
    groups = [_engine_group(directory, engine, r) for r in _ranks(directory, engine.pretrained_config, rank)]
    of_rank = [name for name in engine.files if rank is None or name.startswith((f"rank{rank}.", "opt_trt_"))]
    damaged = tuple(changed(directory, engine.files, of_rank))
    contents = f"not as built: {', '.join(damaged)}" if damaged else "as built" if of_rank else "without checksums"
    header = engine_header(engine) | _on_disk(directory) | {"contents": contents}
    return Listing("engine", header, engine.to_dict(), tuple(groups), damaged)


def _list_tensorrt(directory: Path) -> Listing:
    path = directory / CONFIG_NAME
    values = read_json(path)
    return Listing("TensorRT engine", tensorrt_header(values, path) | _on_disk(directory), values, ())


def _on_disk(directory: Path) -> dict[str, str]:
    files = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    return {"on disk": f"{size_text(sum(files))} in {len(files)} files"}


def _engine_group(directory: Path, engine: EngineConfig, rank: int) -> Group:
    def one(name: str) -> torch.Tensor:
        return map_weights(directory, rank, only=name)[name]

    entries = [
        ListedTensor(
            name, dtype_name(tensor.dtype), tuple(tensor.shape), tensor.nbytes, partial(_blocks, partial(one, name))
        )
        for name, tensor in map_weights(directory, rank).items()
    ]
    return Group(_rank_title(engine.pretrained_config, rank), tuple(entries), rank)


def _list_source(directory: Path, rank: int | None) -> Listing:
    if rank is not None:
        raise UserError(f"{directory} is an original model, which has no ranks; drop --rank")
    source = open_source(directory)
    files: dict[Path, list[ListedTensor]] = {}
    for tensor in source.tensors.values():
        count = torch.Size(tensor.shape).numel() * tensor.dtype.itemsize
        entry = ListedTensor(tensor.key, dtype_name(tensor.dtype), tensor.shape, count, tensor.blocks)
        files.setdefault(tensor.path, []).append(entry)
    groups = tuple(Group(path.name, tuple(entries)) for path, entries in files.items())
    return Listing("original model", source_header(source.config), hf_config_values(source.config), groups)


OPENERS: dict[str, Callable[[Path, int | None], Listing]] = {  # by a key that only the config.json of this kind has
    "build_config": _list_engine,
    "architecture": _list_checkpoint,
    "model_type": _list_source,
}


def _ranks(directory: Path, config: ModelConfig, rank: int | None) -> range:
    every = range(config.mapping.world_size)
    if rank is None:
        return every
    if rank not in every:
        raise UserError(f"--rank {rank}: {directory} has the ranks 0 to {every[-1]}")
    return range(rank, rank + 1)


def _rank_title(config: ModelConfig, rank: int) -> str:
    mapping = config.mapping
    layers = config.stage_layers(mapping.pp_rank(rank))
    place = f" (tp {mapping.tp_rank(rank)}, pp {mapping.pp_rank(rank)})" if mapping.world_size > 1 else ""
    held = f"layers {layers.start}-{layers.stop - 1}" if len(layers) > 1 else f"layer {layers.start}"
    return f"rank {rank}{place}, {held} of the model"


def _blocks(read: Callable[[], torch.Tensor]) -> Iterator[torch.Tensor]:
    yield from blocks_of(read())
