"""The checksums of an engine's files: small ones are checked whenever it is opened, weights by a sample of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from opt_trt.checkpoint.fingerprint import sample
from opt_trt.host.kept import checksum

WEIGHT_FILES = "*.safetensors"
CODE_LIMIT = 1 << 30  # bytes of a file that holds no weights; programs have some MB, and more would take minutes


def checksums_of(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a directory, those of its folders apart."""
    return {file.name: checksum(file) for file in sorted(directory.iterdir()) if file.is_file()}


def samples_of(directory: Path) -> dict[str, str]:
    """Return the sample of each file of weights."""
    return {file.name: sample(file) for file in sorted(directory.glob(WEIGHT_FILES))}


def changed(directory: Path, recorded: dict[str, str], names: Iterable[str]) -> list[str]:
    """Return those of the files `names` that have another SHA-256 than is recorded, or none; all are right if none is.

    Engines of 0.1.0 have no records.
    """
    return [name for name in names if recorded and _differs(_checksum(directory / name), recorded.get(name))]


def changed_samples(directory: Path, recorded: dict[str, str], names: Iterable[str]) -> list[str]:
    """Return those of the files `names` that have another sample than is recorded, as `changed` does."""
    return [name for name in names if recorded and _differs(_sample(directory / name), recorded.get(name))]


def _differs(found: str | None, recorded: str | None) -> bool:
    return found is None or found != recorded


def _checksum(file: Path) -> str | None:
    """Return the SHA-256 of a regular file; None for what cannot be one that was built."""
    if not file.is_file() or (file.stat().st_size > CODE_LIMIT and not file.match(WEIGHT_FILES)):
        return None
    return checksum(file)


def _sample(file: Path) -> str | None:
    return sample(file) if file.is_file() else None
