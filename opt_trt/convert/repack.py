"""Pack the weights of a packed checkpoint for another GPU; the integers stay the same, nothing is quantized again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from opt_trt.checkpoint.packing import check_packable
from opt_trt.checkpoint.reader import CONFIG_NAME, Checkpoint, check_target_sm, rank_file, read_config
from opt_trt.checkpoint.spec import check_shards, packed_mode
from opt_trt.checkpoint.tokenizer_files import keep_tokenizer
from opt_trt.checkpoint.weight_only import repack_blocks
from opt_trt.checkpoint.writer import rank_metadata, write_rank
from opt_trt.config.repack_flags import RepackConfig
from opt_trt.convert.output_directory import open_output
from opt_trt.errors import UserError
from opt_trt.host.disk import size_text
from opt_trt.host.json_file import read_json
from opt_trt.model.config import ModelConfig
from opt_trt.model.placement import is_linear
from opt_trt.quant.mode import QuantMode


def repack(config: RepackConfig) -> None:
    """Write `config.output_dir` from `config.checkpoint_dir`; it appears only when it is complete.

    Both may be the same directory. All ranks are repacked, one tensor at a time. Repacking the result for the first GPU
    gives the original bytes.
    """
    started = time.perf_counter()
    assert config.checkpoint_dir is not None and config.target_sm is not None  # checked by RepackConfig
    directory, output = Path(config.checkpoint_dir), Path(config.output_dir or config.checkpoint_dir)
    model = read_config(directory, config.packed_sm)
    mode = _mode(directory, model)
    check_packable(config.target_sm, "convert the model again with --defer_quantization")
    check_shards(replace(model, target_sm=config.target_sm))
    ranks = [Checkpoint(directory, rank, model.target_sm) for rank in range(model.mapping.world_size)]
    total = sum(rank.nbytes for rank in ranks)
    with open_output(output, "repack", total, config.talks) as (temporary, advance):
        _write_config(temporary, directory, config.target_sm)
        keep_tokenizer(directory, temporary)
        for number, rank in enumerate(ranks):
            tensors = _repacked(rank, mode, config.target_sm, advance)
            write_rank(rank_file(temporary, number), rank.spec, tensors, rank_metadata(number))
    if config.talks:
        print(
            f"checkpoint {output}: packed for SM {config.target_sm} (was {model.target_sm}), {size_text(total)} in "
            f"{len(ranks)} {'rank' if len(ranks) == 1 else 'ranks'}, {time.perf_counter() - started:.1f} s"
        )


def _mode(directory: Path, model: ModelConfig) -> QuantMode:
    """Return the mode of the packed weights; refuse a checkpoint without packed weights."""
    mode = packed_mode(model)
    if mode is None:
        what = f"{model.dtype} weights, to be quantized by the builder" if model.quant_algo else "no quantized weights"
        raise UserError(f"{directory} holds {what}: it fits every GPU as it is; nothing to repack")
    check_target_sm(directory, model)
    return mode


def _write_config(target: Path, source: Path, sm: int) -> None:
    """Write the configuration with another GPU; keep the keys of other programs."""
    values = read_json(source / CONFIG_NAME) | {"target_sm": sm}
    (target / CONFIG_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _repacked(
    rank: Checkpoint, mode: QuantMode, sm: int, advance: Callable[[int], object]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a rank, with linears in the new layout."""
    assert rank.config.target_sm is not None  # check_target_sm
    for name, stored in rank.tensors():
        size = stored.nbytes
        yield name, repack_blocks(stored, mode, rank.config.target_sm, sm) if is_linear(name) else stored
        del stored  # frees it before the next one is made
        advance(size)
