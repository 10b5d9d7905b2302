"""Find or build the engine of a model: the directory itself, or an engine that is built once and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from opt_trt.backends import machine
from opt_trt.backends.build import build
from opt_trt.backends.engine import check_rank, read_engine_config
from opt_trt.backends.identity import TENSORRT, identify
from opt_trt.checkpoint.fingerprint import sample
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.llm_options import AUTO, BUILDING, CONVERTING, LlmOptions
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.host.cache import cache_dir
from opt_trt.host.json_file import read_json
from opt_trt.host.kept import trusted
from opt_trt.host.locks import locked_file
from opt_trt.quant import ALGORITHMS
from opt_trt.sources import how_to_fetch
from opt_trt.version import __version__

QUIET = "warning"  # the log level of converter and builder: this module prints one line instead
LONGEST = 2**31 - 1  # cut by the builder to what max_seq_len and max_num_tokens allow


def engine_of(model: Path, options: LlmOptions) -> Path:
    """Return the engine directory of an engine, a checkpoint or an original model; `UserError` if there can be none."""
    if not model.is_dir():
        raise UserError(
            f"expected a model in {model}, found no such directory; give a local copy of the model, hubs are not read"
            + how_to_fetch(model)
        )
    keys = read_json(model / "config.json") if (model / "config.json").is_file() else {}
    if "build_config" in keys:
        _refuse(_with_dtype(options, {}), CONVERTING + BUILDING, keys, f"{model} is an engine")
        return model
    is_checkpoint = "architecture" in keys
    options = _with_dtype(options, {} if is_checkpoint else keys)
    if is_checkpoint:
        _refuse(options, CONVERTING, keys, f"{model} is a checkpoint")
        options = replace(options, dtype=None, quantization=None)
    engine = trusted(cache_dir()) / "engines" / _fingerprint(model, options)
    engine.parent.mkdir(exist_ok=True)
    with locked_file(engine.with_suffix(".lock")):  # other processes that need the same engine wait until it is built
        if not _is_whole(engine):
            _make(model, is_checkpoint, options, engine)
    return engine


def _is_whole(engine: Path) -> bool:
    """Return whether an engine is there and undamaged. TensorRT-LLM checks its own when it opens one."""
    if not engine.is_dir():
        return False
    try:
        if identify(engine).backend != TENSORRT:
            check_rank(engine, read_engine_config(engine), 0)
    except UserError as damage:
        print(f"opt_trt: {damage.text.partition(';')[0]}: making it again", file=sys.stderr)
        shutil.rmtree(engine, ignore_errors=True)
        return False
    return True


def _with_dtype(options: LlmOptions, keys: Mapping[str, Any]) -> LlmOptions:
    """Replace "auto" by bfloat16 if that is the type of the model's weights, else by the default."""
    if options.dtype != AUTO:
        return options
    own = keys.get("dtype", keys.get("torch_dtype"))
    return replace(options, dtype="bfloat16" if own == "bfloat16" else None)


def _refuse(options: LlmOptions, names: tuple[str, ...], keys: Mapping[str, Any], reason: str) -> None:
    """Refuse those of the options that ask for something else than what `keys` of a `config.json` have settled."""
    settled = _settled(keys)
    if given := [name for name, value in options.given(names).items() if value != settled.get(name)]:
        raise UserError(f"{reason}, for which {' and '.join(given)} is settled; drop it, or give the original model")


def _settled(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that an engine or a checkpoint was made with, as far as its `config.json` says."""
    built, device, model = (_part(keys, name) for name in ("build_config", "device", "pretrained_config"))
    model = model or keys
    mode = ALGORITHMS.get(str(_part(model, "quantization").get("quant_algo")))
    precision = {"dtype": model.get("dtype"), "quantization": None if mode is None else mode.name}
    return {**built, "device": device.get("type"), **precision}


def _part(keys: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = keys.get(name)
    return found if isinstance(found, Mapping) else {}


def _fingerprint(model: Path, options: LlmOptions) -> str:
    """Return a name that changes when a file of the model, an option, the machine or a version does.

    Files count as changed by size, time and a sample of their contents: times lie in images and archives.
    """
    files = sorted(path for path in model.rglob("*") if path.is_file())
    stats = [
        (str(path.relative_to(model)), path.stat().st_size, path.stat().st_mtime_ns, sample(path)) for path in files
    ]
    what = [os.path.realpath(model), stats, options.given(CONVERTING + BUILDING), machine(), __version__]
    text = json.dumps(what)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _make(model: Path, is_checkpoint: bool, options: LlmOptions, engine: Path) -> None:
    """Convert and build, and remove intermediate files, also those that a killed process left."""
    print(f"opt_trt: making an engine of {model} in {engine}, once for these options", file=sys.stderr)
    work = engine.with_suffix(".partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        checkpoint = model if is_checkpoint else work / "checkpoint"
        if not is_checkpoint:
            convert(_convert_config(model, checkpoint, options))
        build(_build_config(checkpoint, work, engine, options))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert_config(model: Path, checkpoint: Path, options: LlmOptions) -> ConvertConfig:
    quantize: dict[str, Any] = {
        "use_weight_only": True,
        "weight_only_precision": options.quantization,
        "defer_quantization": True,
    }
    return ConvertConfig(
        model_dir=str(model),
        output_dir=str(checkpoint),
        log_level=QUIET,
        **options.given(("dtype",)),
        **(quantize if options.quantization else {}),
    )


def _build_config(checkpoint: Path, work: Path, engine: Path, options: LlmOptions) -> BuildConfig:
    limits = {"max_input_len": LONGEST} | options.given(BUILDING)
    return BuildConfig(
        checkpoint_dir=str(checkpoint),
        output_dir=str(engine),
        output_timing_cache=str(work / "model.cache"),
        log_level=QUIET,
        **limits,
    )
