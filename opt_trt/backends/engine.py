"""The engine directory: its `config.json`, its weights, and the checks that it fits this machine."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from opt_trt.backends.checksums import changed, changed_samples
from opt_trt.checkpoint.reader import open_rank_file
from opt_trt.errors import UserError, spelled
from opt_trt.host.interrupts import deferred_interrupts
from opt_trt.host.json_file import check_types, read_json
from opt_trt.host.program import program_of
from opt_trt.model.config import ModelConfig
from opt_trt.plugins.cuda.gpu import Gpu
from opt_trt.step import DecoderSpec
from opt_trt.version import __version__

CONFIG, PROGRAMS, WEIGHTS = "config.json", "rank{rank}.engine", "rank{rank}.weights.safetensors"
REBUILD = f"build it again here: {program_of('build')} --checkpoint_dir CHECKPOINT --output_dir {{engine}}"


@dataclass(frozen=True)
class Limits:
    """`build_config` of an engine: TensorRT-LLM's keys."""

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    tokens_per_block: int
    gather_context_logits: bool
    gather_generation_logits: bool
    lm_head_precision: str | None = None  # a quant mode; None: that of the checkpoint's head
    context_int8: bool = False  # activations of several tokens may be int8
    max_beam_width: int = 1
    kv_cache_type: str = "PAGED"
    plugin_config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineConfig:
    """`config.json` of an engine: TensorRT-LLM's three keys, then those that the embedded backend needs."""

    pretrained_config: ModelConfig
    build_config: Limits
    backend: str
    device: dict[str, str]
    plugin_library: str
    tactics: dict[str, list[str]]
    checkpoint: str  # fingerprint of the checkpoint it was built from
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 by name; none in an engine of 0.1.0
    samples: dict[str, str] = field(default_factory=dict)  # of the weights, by name
    tactic_us: dict[str, list[float]] = field(default_factory=dict)  # by site and bucket, of engines for CPUs
    version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        first = ("version", "pretrained_config", "build_config")
        values = asdict(self) | {"pretrained_config": self.pretrained_config.to_dict()}
        return seal({name: values[name] for name in (*first, *(n for n in values if n not in first))})

    def fingerprint(self) -> str:
        """Return a text that is equal for equal engines; it is part of `config.json`."""
        return str(self.to_dict()["fingerprint"])


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """Add a fingerprint of all other values. Programs are compiled for them, so changes must be noticed."""
    others = {name: value for name, value in values.items() if name != "fingerprint"}
    text = json.dumps(others, sort_keys=True)
    return others | {"fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16]}


def read_engine_config(engine_dir: Path) -> EngineConfig:
    """Read and check an engine's `config.json`."""
    path = engine_dir / CONFIG
    if not engine_dir.is_dir():
        raise UserError(
            f"expected an engine directory at {engine_dir}, found none; make one with build.py --output_dir"
        )
    values = read_json(path)
    if "backend" not in values or "build_config" not in values:
        raise UserError(f"{path} does not describe an engine of ours (a checkpoint?); make one with build.py")
    if seal(values) != values:
        raise UserError(f"{path} was changed after the build; {REBUILD.format(engine=engine_dir)}")
    del values["fingerprint"]
    try:
        check_types(EngineConfig, values, path)
        check_types(Limits, values["build_config"], path)
        config = EngineConfig(
            **{
                **values,
                "pretrained_config": ModelConfig.from_dict(values["pretrained_config"], path),
                "build_config": Limits(**values["build_config"]),
            }
        )
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{path} was written by another version of opt_trt ({error}); {REBUILD.format(engine=engine_dir)}"
        ) from error
    _check_names(config, path)
    return config


def _check_names(config: EngineConfig, path: Path) -> None:
    """Refuse names of files that may lie elsewhere: code is loaded from the engine's directory alone."""
    names = (config.plugin_library, *config.files, *config.samples)
    if strange := [name for name in names if name and Path(name).name != name]:
        raise UserError(
            f"{path} names {strange[0]}, which is no file of its directory; {REBUILD.format(engine=path.parent)}"
        )


def engine_spec(config: EngineConfig, num_layers: int, device: str) -> DecoderSpec:
    """Describe a rank of `num_layers` layers on a device, `cpu` or `cuda`, to a session."""
    model, limits = config.pretrained_config, config.build_config
    return DecoderSpec(
        num_layers=num_layers,
        num_heads=model.local_heads,
        head_size=model.head_size,
        vocab_size=model.vocab_size,
        kv_dtype=getattr(torch, model.dtype),
        tokens_per_block=limits.tokens_per_block,
        max_batch_size=limits.max_batch_size,
        max_input_len=limits.max_input_len,
        max_seq_len=limits.max_seq_len,
        max_num_tokens=limits.max_num_tokens,
        gather_context_logits=limits.gather_context_logits,
        gather_generation_logits=limits.gather_generation_logits,
        end_id=model.eos_token_id,
        pad_id=model.pad_token_id,
        end_token_ids=model.end_token_ids,
        device=device,
    )


def check_device(engine_dir: Path, config: EngineConfig, flags: frozenset[str]) -> None:
    """Refuse an engine that was built by another torch, or that uses instructions this processor (`flags`) lacks."""
    built = config.device
    check_torch(engine_dir, config)
    lacking = sorted(set(str(built.get("flags")).split()) - flags)
    if lacking:
        raise UserError(
            f"{engine_dir} was built for {built.get('isa')}: {' '.join(lacking)}, which this processor lacks; "
            + REBUILD.format(engine=engine_dir)
            + f", or where it was built with {spelled('target_isa')} avx2 or generic"
        )


def check_gpu(engine_dir: Path, config: EngineConfig, gpu: Gpu | None) -> None:
    """Refuse an engine that was built by another torch, or for GPUs of another compute capability than this one."""
    built = config.device
    check_torch(engine_dir, config)
    if gpu is None or gpu.capability != built.get("capability"):
        found = "torch sees none here" if gpu is None else f"this is an {gpu}"
        raise UserError(
            f"{engine_dir} was built for GPUs of compute capability {built.get('capability')} ({built.get('gpu')}), "
            f"{found}; run it on such a GPU, or {REBUILD.format(engine=engine_dir)}"
        )


def check_torch(engine_dir: Path, config: EngineConfig) -> None:
    """Refuse an engine that was built by another torch."""
    if (built := config.device.get("torch")) != torch.__version__:
        raise UserError(
            f"{engine_dir} was built with torch {built}, this is torch {torch.__version__}; "
            + REBUILD.format(engine=engine_dir)
        )


def rank_metadata(config: EngineConfig, rank: int) -> dict[str, str]:
    """Return the metadata of a rank's weights, by which ranks of different engines are told apart."""
    return {"format": "pt", "rank": str(rank), "checkpoint": config.checkpoint}


def check_rank(engine_dir: Path, config: EngineConfig, rank: int) -> None:
    """Refuse files that are missing or damaged, and the weights of another engine or of another rank."""
    weights, expected = WEIGHTS.format(rank=rank), rank_metadata(config, rank)
    code = [name for name in (PROGRAMS.format(rank=rank), config.plugin_library) if name]
    with _opened(engine_dir, rank) as file:
        found = file.metadata() or {}
    if wrong := [name for name, value in expected.items() if found.get(name) != value]:
        name = wrong[-1]
        raise UserError(
            f"{engine_dir / weights} is of {name} {found.get(name)}, {engine_dir / CONFIG} of {name} {expected[name]}; "
            f"copy all files of one engine, or {REBUILD.format(engine=engine_dir)}"
        )
    for name in code:
        if not (engine_dir / name).is_file():
            raise UserError(f"expected {engine_dir / name}, found no such file; {REBUILD.format(engine=engine_dir)}")
    damaged = changed(engine_dir, config.files, code) or changed_samples(engine_dir, config.samples, [weights])
    if damaged:
        raise UserError(
            f"{engine_dir / damaged[0]} is not as it was built; copy it again, or {REBUILD.format(engine=engine_dir)}"
        )


def map_weights(engine_dir: Path, rank: int, only: str | None = None) -> dict[str, torch.Tensor]:
    """Map all weights of a rank, or `only` one, into memory: nothing is read until a program uses it."""
    with deferred_interrupts(), _opened(engine_dir, rank) as file:
        names = file.keys() if only is None else (only,)
        return {name: file.get_tensor(name) for name in names}


def _opened(engine_dir: Path, rank: int) -> AbstractContextManager[Any]:
    """Open the file with the weights of a rank."""
    return open_rank_file(engine_dir / WEIGHTS.format(rank=rank), REBUILD.format(engine=engine_dir))
