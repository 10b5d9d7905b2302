"""Checks of a safetensors file before the library opens it: the library maps the file and reads the whole header."""

from __future__ import annotations

import os
from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.host.files import open_regular

LENGTH_BYTES = 8  # size of the number that says how long the header is
HEADER_LIMIT = 16 << 20  # bytes; the header of OPT-175B in one file would have 0.3 MB


def check_header(path: Path) -> None:
    """Refuse a file that is not regular, is too short for its header, or whose header could not be that of a model."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if not 0 < length <= min(HEADER_LIMIT, size - LENGTH_BYTES):
        raise UserError(
            f"{path} is truncated or not safetensors (a header of {length} bytes in a file of {size}); fetch the file "
            "again"
        )
