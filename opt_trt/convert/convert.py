"""Convert an original OPT checkpoint to a TensorRT-LLM checkpoint; each worker has one tensor in memory."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from opt_trt.checkpoint.packing import check_packable, is_interleaved
from opt_trt.checkpoint.reader import write_config
from opt_trt.checkpoint.spec import check_shards, tensor_spec, unloadable
from opt_trt.checkpoint.tokenizer_files import keep_tokenizer
from opt_trt.checkpoint.writer import TensorSpec
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.output_directory import open_output
from opt_trt.convert.quant_report import QuantReport, report_paths, write_report
from opt_trt.convert.rank_files import RankFiles
from opt_trt.errors import UserError, one_line, spelled
from opt_trt.host.disk import size_text
from opt_trt.host.program import program_of
from opt_trt.host.workers import Scratch, for_each
from opt_trt.model.config import ENGINE_ACTIVATION, ModelConfig
from opt_trt.model.mapping import Mapping
from opt_trt.quant import ALGORITHMS, MODES
from opt_trt.sources import open_source
from opt_trt.sources.canonical import canonical_tensors
from opt_trt.sources.manifest import check_md5
from opt_trt.sources.opt import OptConfig, Source

HUB = "models--"  # begins the directories of Hugging Face's cache: models--facebook--opt-125m
NAMELESS = ("model", "models", "hf", "hf_model", "original", "source", "weights")
DEFAULT_CAPABILITY = 8, 0  # the GPU to pack for if no GPU is visible


def convert(config: ConvertConfig) -> None:
    """Write `config.output_dir` from `config.model_dir`; it appears only when it is complete.

    `UserError` for a source that cannot be converted, and for an output that would replace something else.
    """
    started = time.perf_counter()
    assert config.model_dir is not None  # checked by ConvertConfig
    model_dir, output_dir = Path(config.model_dir), Path(config.output_dir)
    _protect_source(model_dir, output_dir)
    paths = report_paths(config.report, config.output_dir) if config.report is not None else None
    source = _open(model_dir, config)
    model = model_config(source.config, config)
    check_shards(model)
    _warn_of_loader(model)
    specs = [tensor_spec(model, rank) for rank in range(model.mapping.world_size)]
    report = QuantReport(ALGORITHMS[model.quant_algo]) if paths and model.quant_algo else None
    warnings: list[str] = []
    tensors = canonical_tensors(source, getattr(torch, model.dtype), Scratch().empty, warnings.append)
    with open_output(output_dir, "convert", _nbytes(specs), config.talks) as (directory, advance):
        write_config(directory, model)
        keep_tokenizer(model_dir, directory)
        with RankFiles(directory, model, advance, report) as ranks:
            for_each(tensors, ranks.write, config.workers)
    for line in warnings:
        print(f"WARNING: {one_line(line)}", file=sys.stderr)
    lines = [_summary(output_dir, model, specs, time.perf_counter() - started)]
    if paths and report:
        lines.append(write_report(report, paths, _about(model_dir, model)))
    if config.talks:
        print("\n".join(lines))


def _open(model_dir: Path, config: ConvertConfig) -> Source:
    """Open the source, after comparing its files with published md5 sums if there is a list; print its notes."""
    quiet = not config.talks
    checked = [check_md5(model_dir, Path(config.md5_manifest), quiet)] if config.md5_manifest else []
    source = open_source(model_dir, config.model_type)
    for note in () if quiet else (*checked, *source.notes):
        print(one_line(note))
    return source


def model_config(source: OptConfig, config: ConvertConfig) -> ModelConfig:
    """Return the checkpoint's configuration, from the source's hyper-parameters and the flags."""
    parallel, quantized = config.use_parallel_embedding, config.use_weight_only
    if parallel and source.has_projections:
        parallel = False
        print(
            "WARNING: --use_parallel_embedding does not apply to a model with embedding projections "
            f"(word_embed_proj_dim {source.word_embed_proj_dim}, hidden_size {source.hidden_size}): "
            "its tables stay whole and config.json says use_parallel_embedding false",
            file=sys.stderr,
        )
    return ModelConfig(
        architecture="OPTForCausalLM",
        dtype=config.dtype,
        num_hidden_layers=source.num_hidden_layers,
        num_attention_heads=source.num_attention_heads,
        hidden_size=source.hidden_size,
        intermediate_size=source.ffn_dim,
        vocab_size=source.vocab_size,
        max_position_embeddings=source.max_position_embeddings,
        do_layer_norm_before=source.do_layer_norm_before,
        hidden_act=source.hidden_act,
        quantization={"quant_algo": MODES[config.weight_only_precision or "int8"].quant_algo if quantized else None},
        mapping=Mapping(config.tp_size * config.pp_size, config.tp_size, config.pp_size),
        pp_layers=config.pp_layers,
        use_parallel_embedding=parallel,
        embedding_sharding_dim=0 if source.has_projections else config.embedding_sharding_dim,
        remove_final_layer_norm=source.remove_final_layer_norm,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        pad_token_id=source.pad_token_id,
        target_sm=_target_sm(config),
        defer_quantization=config.defer_quantization,
        end_token_ids=source.end_token_ids,
    )


def _target_sm(config: ConvertConfig) -> int | None:
    """Return the GPU to pack for; None if nothing is packed and the flags name none. Refuse GPUs without a layout."""
    sm = config.target_sm
    if sm is None and config.use_weight_only and not config.defer_quantization:
        major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else DEFAULT_CAPABILITY
        sm = 10 * major + minor
    if sm is None:
        return None
    if config.defer_quantization:
        is_interleaved(sm)  # refuses unknown GPUs
    else:
        check_packable(sm, f"give {spelled('defer_quantization')}, or another {spelled('target_sm')}")
    return sm


def _warn_of_loader(model: ModelConfig) -> None:
    if odd := unloadable(model):
        print(
            "WARNING: TensorRT-LLM's weight-only linears take multiples of 64 features per rank, so its builder will "
            f"not load this checkpoint: {', '.join(odd)}",
            file=sys.stderr,
        )
    if model.pp_layers is not None:
        print(
            "WARNING: TensorRT-LLM does not know --pp_layers: its builder divides layers evenly and will not load this "
            "checkpoint if these numbers are others",
            file=sys.stderr,
        )


def _protect_source(model_dir: Path, output_dir: Path) -> None:
    """Refuse to replace the source or a directory around it; a new directory inside it is allowed."""
    source, target = Path(os.path.realpath(model_dir)), Path(os.path.realpath(output_dir))
    if source.is_relative_to(target):
        raise UserError(
            f"{spelled('output_dir')} {output_dir} would replace {spelled('model_dir')} {model_dir}; "
            "give another directory"
        )


def _nbytes(specs: list[dict[str, TensorSpec]]) -> int:
    return sum(tensor.nbytes for spec in specs for tensor in spec.values())


def _about(model_dir: Path, model: ModelConfig) -> dict[str, Any]:
    """Return the description of the conversion for its report."""
    return {
        "model": model_name(Path(os.path.realpath(model_dir))),
        "quant_algo": model.quant_algo,
        "dtype": model.dtype,
        "tp_size": model.mapping.tp_size,
        "pp_size": model.mapping.pp_size,
        "target_sm": model.target_sm,
        "defer_quantization": model.defer_quantization,
    }


def model_name(directory: Path) -> str:
    """Return what people call the model in a directory, also in a cache of the hub and in folders like `model`."""
    hub = next((part for part in reversed(directory.parts) if part.startswith(HUB)), None)
    if hub is not None:
        return hub.removeprefix(HUB).replace("--", "/")
    return directory.parent.name if directory.name.lower() in NAMELESS and directory.parent.name else directory.name


def _summary(output_dir: Path, model: ModelConfig, specs: list[dict[str, TensorSpec]], seconds: float) -> str:
    """Return one line: the written files, and the command that builds them (the embedded backend has ReLU only)."""
    backend = "" if model.hidden_act == ENGINE_ACTIVATION else " --backend tensorrt_llm"
    size, count = _nbytes(specs), sum(map(len, specs))
    ranks = f" in {len(specs)} ranks" if len(specs) > 1 else ""
    return (
        f"checkpoint {output_dir}: {count} tensors{ranks}, {size_text(size)}, {seconds:.1f} s, "
        f"{size_text(round(size / seconds))}/s; "
        f"next: {program_of('build')} --checkpoint_dir {shlex.quote(str(output_dir))} "
        f"--output_dir {shlex.quote(str(_engine_dir(output_dir)))}{backend}"
    )


def _engine_dir(checkpoint: Path) -> Path:
    """Return a name for the engine of a checkpoint: `work/engine` for `work/checkpoint`."""
    if checkpoint.name == ConvertConfig.output_dir:
        return checkpoint.with_name(BuildConfig.output_dir)
    if "checkpoint" in checkpoint.name:
        return checkpoint.with_name(checkpoint.name.replace("checkpoint", "engine"))
    return checkpoint.with_name(f"{checkpoint.name}_engine")
