"""The checksums of an engine's files: small ones are checked whenever it is opened, weights by a sample of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from opt_trt.checkpoint.fingerprint import sample
from opt_trt.host.kept import checksum

WEIGHT_FILES = "*.safetensors"


def checksums_of(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a directory."""
    return {file.name: checksum(file) for file in sorted(directory.iterdir())}


def samples_of(directory: Path) -> dict[str, str]:
    """Return the sample of each file of weights."""
    return {file.name: sample(file) for file in sorted(directory.glob(WEIGHT_FILES))}


def changed(directory: Path, recorded: dict[str, str], names: Iterable[str]) -> list[str]:
    """Return those of the files `names` that differ from their recorded SHA-256, or are missing."""
    return [name for name in names if name in recorded and _checksum(directory / name) != recorded[name]]


def changed_samples(directory: Path, recorded: dict[str, str], names: Iterable[str]) -> list[str]:
    """Return those of the files `names` that differ from their recorded sample, or are missing."""
    return [name for name in names if name in recorded and _sample(directory / name) != recorded[name]]


def _checksum(file: Path) -> str | None:
    return checksum(file) if file.is_file() else None


def _sample(file: Path) -> str | None:
    return sample(file) if file.is_file() else None
