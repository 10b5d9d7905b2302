"""Write a checkpoint as a Hugging Face directory: `config.json`, safetensors files, and a tokenizer if one is given."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from opt_trt.checkpoint.tokenizer_files import FILES, FOLDER, tokenizer_files
from opt_trt.checkpoint.whole_model import WholeModel
from opt_trt.checkpoint.writer import TensorSpec, write_rank
from opt_trt.config.export_flags import ExportConfig
from opt_trt.convert.hf_model import source_config, source_specs, source_tensors
from opt_trt.convert.output_directory import open_output
from opt_trt.errors import UserError
from opt_trt.host.disk import size_text
from opt_trt.host.workers import one_thread
from opt_trt.sources.hf_config import TOKENS, hf_config_values
from opt_trt.sources.opt import OptConfig
from opt_trt.version import __version__

MARKER = "opt_trt_export.json"  # describes the source of the weights; a directory without it is never replaced
INDEX = "model.safetensors.index.json"
Files = dict[str, dict[str, TensorSpec]]  # tensors by file
OWNED = ("config.json", "generation_config.json", "model*.safetensors", INDEX, *FILES)


def export_hf(config: ExportConfig) -> None:
    """Write `config.output_dir` from `config.checkpoint_dir`; it appears only when it is complete.

    Tensors have the checkpoint's dtype; quantized ones are dequantized. The two unused rows of the position table are
    zeros. Projections are not taken out of the embedding and the head again.
    """
    started = time.perf_counter()
    assert config.checkpoint_dir is not None  # checked by ExportConfig
    tokenizer = _tokenizer_files(config)
    model = WholeModel(config.checkpoint_dir, config.packed_sm)
    with one_thread():
        files = _write(model, tokenizer, config)
    if config.talks:
        print(_summary(config, model, files, time.perf_counter() - started))


def _write(model: WholeModel, tokenizer: list[Path], config: ExportConfig) -> Files:
    """Write all files; return the tensors by file."""
    source = source_config(model)
    specs = source_specs(source, model.config)
    total = sum(spec.nbytes for spec in specs.values())
    files = shard_files(specs, config.max_shard_bytes)
    output = open_output(Path(config.output_dir), "export", total, config.talks, MARKER, OWNED)
    with output as (directory, advance):
        _write_json(directory / MARKER, _origin(model))
        _write_configs(directory, source, model.config.dtype)
        for file in tokenizer:
            shutil.copyfile(file, directory / file.name)
        _write_index(directory, files)
        tensors = _counted(source_tensors(model, source), advance)
        for name, part in files.items():
            write_rank(directory / name, part, islice(tensors, len(part)))
    return files


def shard_files(specs: dict[str, TensorSpec], max_bytes: int) -> Files:
    """Assign tensors to files in order, at most `max_bytes` to a file; a larger tensor gets a file of its own."""
    shards: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{n:05}-of-{len(shards):05}.safetensors": shard for n, shard in enumerate(shards, 1)}


def _tokenizer_files(config: ExportConfig) -> list[Path]:
    """Return the files of the tokenizer given, or of the one kept with the checkpoint, if there is one."""
    if config.tokenizer_dir is None:
        return tokenizer_files(Path(str(config.checkpoint_dir)) / FOLDER)
    files = tokenizer_files(Path(config.tokenizer_dir))
    if not files:
        raise UserError(f"--tokenizer_dir {config.tokenizer_dir} holds none of {', '.join(FILES)}; give a tokenizer")
    return files


def _write_configs(directory: Path, source: OptConfig, dtype: str) -> None:
    values = {"architectures": ["OPTForCausalLM"], "torch_dtype": dtype} | hf_config_values(source)
    _write_json(directory / "config.json", values)
    _write_json(directory / "generation_config.json", {key: values[key] for key in TOKENS})


def _write_index(directory: Path, files: Files) -> None:
    if len(files) > 1:
        weight_map = {name: file for file, part in files.items() for name in part}
        total = sum(spec.nbytes for part in files.values() for spec in part.values())
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _origin(model: WholeModel) -> dict[str, Any]:
    config = model.config.to_dict()
    return {"version": __version__, "checkpoint_dir": str(model.directory), "checkpoint_config": config}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _counted(
    tensors: Iterator[tuple[str, torch.Tensor]], advance: Callable[[int], object]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        size = tensor.nbytes
        yield name, tensor
        del tensor  # frees it before the next one is made
        advance(size)


def _summary(config: ExportConfig, model: WholeModel, files: dict[str, dict[str, TensorSpec]], seconds: float) -> str:
    """Return one line: the number of tensors, their size, and the dtype of their values."""
    specs = [spec for part in files.values() for spec in part.values()]
    size, algorithm = sum(spec.nbytes for spec in specs), model.config.quant_algo
    values = f"{algorithm} dequantized to {model.config.dtype}" if algorithm else model.config.dtype
    if model.config.defer_quantization:
        values = f"{model.config.dtype}, as stored for {algorithm}"
    return (
        f"Hugging Face model {config.output_dir}: {len(specs)} tensors in {len(files)} "
        f"{'files' if len(files) > 1 else 'file'}, {size_text(size)}, {values}, {seconds:.1f} s"
    )
