"""The fingerprint of a checkpoint: engines of one run must have been built from the same checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from opt_trt.checkpoint.reader import CONFIG_NAME, CONVERT_AGAIN, open_rank_file, rank_file, read_config

SAMPLE_BYTES = 4096  # read of each tensor: training changes every tensor, and whole files would take minutes
LENGTH_BYTES = 8  # size of the number that says how long a safetensors header is


def fingerprint(directory: Path) -> str:
    """Return 16 digits: a hash of the configuration and of name, shape and first bytes of every tensor of all ranks."""
    ranks = range(read_config(directory).mapping.world_size)
    digest = hashlib.sha256((directory / CONFIG_NAME).read_bytes())
    for rank in ranks:
        for piece in _pieces(rank_file(directory, rank)):
            digest.update(piece)
    return digest.hexdigest()[:16]


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the header of a rank file, then the first bytes of its tensors."""
    with open_rank_file(path, CONVERT_AGAIN):  # its header is whole
        descriptor = os.open(path, os.O_RDONLY)
    try:
        length = int.from_bytes(os.pread(descriptor, LENGTH_BYTES, 0), "little")
        header = os.pread(descriptor, length, LENGTH_BYTES)
        yield header
        for name, tensor in json.loads(header).items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                yield os.pread(descriptor, min(SAMPLE_BYTES, end - start), LENGTH_BYTES + length + start)
    finally:
        os.close(descriptor)
