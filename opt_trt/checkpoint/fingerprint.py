"""The fingerprint of a checkpoint: engines of one run must have been built from the same checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from opt_trt.checkpoint.reader import CONFIG_NAME, rank_file, read_config

SAMPLE_BYTES = 4096  # read of each tensor: training changes every tensor, and whole files would take minutes
PIECES = 256  # of a file that is no safetensors
LENGTH_BYTES = 8  # size of the number that says how long a safetensors header is


def fingerprint(directory: Path) -> str:
    """Return 16 digits: a hash of the configuration and of name, shape and first bytes of every tensor of all ranks."""
    digest = hashlib.sha256((directory / CONFIG_NAME).read_bytes())
    for rank in range(read_config(directory).mapping.world_size):
        for piece in _tensor_pieces(rank_file(directory, rank)):
            digest.update(piece)
    return digest.hexdigest()[:16]


def sample(path: Path) -> str:
    """Return 16 digits: a hash of a file, or of a part of a large one. It takes milliseconds.

    Of a safetensors file they are its header and the first bytes of every tensor, of another large file pieces that are
    evenly spaced.
    """
    digest = hashlib.sha256()
    for piece in _tensor_pieces(path) if path.suffix == ".safetensors" else _spaced_pieces(path):
        digest.update(piece)
    return digest.hexdigest()[:16]


def _tensor_pieces(path: Path) -> Iterator[bytes]:
    """Yield the header of a rank file, then the first bytes of its tensors."""
    with path.open("rb", buffering=0) as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = file.read(min(length, path.stat().st_size))
        yield header
        for start, end in _offsets(header):
            yield os.pread(file.fileno(), max(0, min(SAMPLE_BYTES, end - start)), LENGTH_BYTES + length + start)


def _offsets(header: bytes) -> list[tuple[int, int]]:
    """Return where the tensors of a safetensors file begin and end; none if its header is damaged."""
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        return [(int(tensor["data_offsets"][0]), int(tensor["data_offsets"][1])) for tensor in tensors]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []


def _spaced_pieces(path: Path) -> Iterator[bytes]:
    """Yield a whole file of up to a MiB, or that many bytes of a larger one in pieces."""
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        for piece in range(PIECES):
            yield os.pread(
                file.fileno(), SAMPLE_BYTES, max(piece * SAMPLE_BYTES, (size - SAMPLE_BYTES) * piece // PIECES)
            )
