"""Find out which backend built an engine directory, from its `config.json` alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opt_trt.backends.engine import CONFIG, read_engine_config
from opt_trt.errors import UserError
from opt_trt.host.json_file import read_json

TENSORRT = "tensorrt_llm"
THREE_KEYS = (
    "version",
    "pretrained_config",
    "build_config",
)  # keys of TensorRT engines, also of those of trtllm-build


@dataclass(frozen=True)
class Identity:
    """The facts about an engine that are needed before it is opened."""

    backend: str
    world_size: int
    fingerprint: str  # differs between engines


def identify(engine_dir: Path) -> Identity:
    """Read an engine's `config.json`. One that names no backend is a TensorRT engine: `trtllm-build` names none."""
    path = engine_dir / CONFIG
    values = read_json(path) if path.is_file() else {}
    if "builder_config" in values:
        raise UserError(f"{path} is of TensorRT-LLM before 0.8, whose engines no later release runs; build it again")
    if values.get("backend", TENSORRT) == TENSORRT and all(key in values for key in THREE_KEYS):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return Identity(TENSORRT, _world_size(values, path), digest)
    config = read_engine_config(engine_dir)
    return Identity(config.backend, config.pretrained_config.mapping.world_size, config.fingerprint())


def _world_size(values: dict[str, Any], path: Path) -> int:
    """Return the number of ranks of a TensorRT engine; `UserError` if a key has an unusable value."""
    for key in THREE_KEYS[1:]:
        if not isinstance(values[key], dict):
            raise UserError(f"{path}: {key} must be an object, found {values[key]!r}; build the engine again")
    mapping = values["pretrained_config"].get("mapping") or {}
    size = mapping.get("world_size", 1) if isinstance(mapping, dict) else None
    if type(size) is not int or size < 1:
        raise UserError(
            f"{path}: mapping must say a world_size of at least 1, found {mapping!r}; build the engine again"
        )
    return size
