"""Convert an original OPT checkpoint to a TensorRT-LLM checkpoint, one tensor in memory at a time and worker."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from opt_trt.atomic import atomic_directory
from opt_trt.checkpoint import write_config
from opt_trt.checkpoint.spec import check_shards, tensor_spec, unloadable
from opt_trt.checkpoint.writer import TensorSpec
from opt_trt.config.convert import ConvertConfig
from opt_trt.config.flags import TALKATIVE
from opt_trt.config.model import ModelConfig
from opt_trt.distribute import RankFiles, for_each
from opt_trt.errors import UserError
from opt_trt.mapping import Mapping
from opt_trt.packing import DEFERRED_ONLY, is_interleaved
from opt_trt.quant import MODES
from opt_trt.sources import open_source
from opt_trt.sources.canonical import canonical_tensors
from opt_trt.sources.manifest import check_md5
from opt_trt.sources.opt import OptConfig, Source

DEFAULT_CAPABILITY = 8, 0  # of the GPU to pack for where none is visible


def convert(config: ConvertConfig) -> None:
    """Write `config.output_dir` from `config.model_dir`; it appears only when it is whole.

    `UserError` for a source that cannot be converted and for an output that would harm something else.
    """
    started = time.perf_counter()
    assert config.model_dir is not None  # checked by ConvertConfig
    model_dir, output_dir = Path(config.model_dir), Path(config.output_dir)
    _protect_source(model_dir, output_dir)
    source = _open(model_dir, config)
    model = model_config(source.config, config)
    check_shards(model)
    _warn_of_loader(model)
    specs = [tensor_spec(model, rank) for rank in range(model.mapping.world_size)]
    _check_space(output_dir, specs)
    with _one_thread(), atomic_directory(output_dir, owned=("rank*.safetensors",)) as directory:
        write_config(directory, model)
        with _progress(_nbytes(specs), config.log_level) as bar, RankFiles(directory, model, bar.update) as ranks:
            for_each(canonical_tensors(source, getattr(torch, model.dtype)), ranks.write, config.workers)
    if config.log_level in TALKATIVE:
        print(_summary(output_dir, model, specs, time.perf_counter() - started))


def _open(model_dir: Path, config: ConvertConfig) -> Source:
    """The source, its files compared with their published md5 sums if there is a list; says what was found."""
    quiet = config.log_level not in TALKATIVE
    checked = [check_md5(model_dir, Path(config.md5_manifest), quiet)] if config.md5_manifest else []
    source = open_source(model_dir)
    for note in () if quiet else (*checked, *source.notes):
        print(note)
    return source


@contextmanager
def _one_thread() -> Iterator[None]:
    """Copying is bound by memory and disk; more threads would only wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def model_config(source: OptConfig, config: ConvertConfig) -> ModelConfig:
    """The checkpoint's configuration: the source's hyper-parameters and what the flags ask for."""
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
        quantization={"quant_algo": MODES[config.weight_only_precision or "int8"].quant_algo if quantized else None},
        mapping=Mapping(config.tp_size * config.pp_size, config.tp_size, config.pp_size),
        use_parallel_embedding=parallel,
        embedding_sharding_dim=0 if source.has_projections else config.embedding_sharding_dim,
        remove_final_layer_norm=source.remove_final_layer_norm,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        pad_token_id=source.pad_token_id,
        target_sm=_target_sm(config),
        defer_quantization=config.defer_quantization,
    )


def _target_sm(config: ConvertConfig) -> int | None:
    """The GPU to pack for, None when nothing is packed and none was named; refuses those that cannot be packed for."""
    sm = config.target_sm
    if sm is None and config.use_weight_only and not config.defer_quantization:
        major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else DEFAULT_CAPABILITY
        sm = 10 * major + minor
    if sm is None:
        return None
    is_interleaved(sm)
    if sm in DEFERRED_ONLY and not config.defer_quantization:
        raise UserError(
            f"target_sm {sm}: TensorRT-LLM's builder refuses packed weights on SM 100 to 119; "
            "give --defer_quantization, or another --target_sm"
        )
    return sm


def _warn_of_loader(model: ModelConfig) -> None:
    if odd := unloadable(model):
        print(
            "WARNING: TensorRT-LLM's weight-only linears take multiples of 64 features per rank, so its builder will "
            f"not load this checkpoint: {', '.join(odd)}",
            file=sys.stderr,
        )


def _progress(total: int, log_level: str) -> tqdm:
    """A bar over the bytes written; quiet when stderr is not a terminal."""
    quiet = None if log_level in TALKATIVE else True
    return tqdm(total=total, desc="convert", unit="B", unit_scale=True, disable=quiet, leave=False)


def _protect_source(model_dir: Path, output_dir: Path) -> None:
    """Refuse to replace the source or a directory around it; a new directory inside it does no harm."""
    source, target = Path(os.path.realpath(model_dir)), Path(os.path.realpath(output_dir))
    if source.is_relative_to(target):
        raise UserError(f"--output_dir {output_dir} would replace --model_dir {model_dir}; give another directory")


def _nbytes(specs: list[dict[str, TensorSpec]]) -> int:
    return sum(tensor.nbytes for spec in specs for tensor in spec.values())


def _check_space(output_dir: Path, specs: list[dict[str, TensorSpec]]) -> None:
    """Refuse before the work what the disk cannot take after it."""
    parent = next(p for p in Path(os.path.realpath(output_dir)).parents if p.is_dir())
    needed, free = _nbytes(specs), shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(f"{output_dir} needs {needed / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free; make room")


def _summary(output_dir: Path, model: ModelConfig, specs: list[dict[str, TensorSpec]], seconds: float) -> str:
    """One line: what was written, and the builder that takes it (ours takes plain weights of one rank)."""
    ours = model.quant_algo is None and model.mapping.world_size == 1
    builder = "python build.py" if ours else "trtllm-build (TensorRT-LLM 1.2)"
    size, count = _nbytes(specs) / 1e9, sum(map(len, specs))
    ranks = f" in {len(specs)} ranks" if len(specs) > 1 else ""
    return (
        f"checkpoint {output_dir}: {count} tensors{ranks}, {size:.3f} GB, {seconds:.1f} s, {size / seconds:.2f} GB/s; "
        f"next: {builder} --checkpoint_dir {output_dir} --output_dir engine_outputs"
    )
