"""Keep the logits of finished outputs on disk: those of many prompts are larger than the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
import torch

from opt_trt.errors import UserError
from opt_trt.host.memory import address_space_left, available_bytes
from opt_trt.runtime.request import Request
from opt_trt.step import DecoderSpec

LOGIT_BYTES = 4  # fp32


@dataclass(frozen=True)
class Spooled:
    """An fp32 array in a file, from `offset` on."""

    file: BinaryIO
    offset: int
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Return the array."""
        self.file.seek(self.offset)
        content = self.file.read(LOGIT_BYTES * math.prod(self.shape))
        return np.frombuffer(content, dtype="<f4").reshape(self.shape)


class Spool:
    """A nameless file in a directory, to which arrays are added."""

    def __init__(self, directory: Path) -> None:
        self._file = TemporaryFile(dir=directory)  # noqa: SIM115  # it ends with the spool
        self._end = 0

    def keep(self, values: torch.Tensor) -> Spooled:
        """Write fp32 values of any shape."""
        spooled = Spooled(self._file, self._end, tuple(values.shape))
        self._file.seek(self._end)
        self._file.write(np.ascontiguousarray(values.numpy(), dtype="<f4").data)
        self._end += LOGIT_BYTES * values.numel()
        return spooled


def check_memory(requests: Sequence[Request], spec: DecoderSpec) -> None:
    """Refuse requests whose logits do not fit into memory while they run: those in flight, and those of one step."""
    rows = [
        len(request.prompt_ids) * request.return_context_logits
        + request.max_new_tokens * request.return_generation_logits
        for request in requests
    ]
    held = sum(sorted(rows)[-spec.max_batch_size :])
    needed = LOGIT_BYTES * spec.vocab_size * (held + min(held, spec.max_num_tokens) + max(rows))
    there = min(available_bytes(), address_space_left())
    if held and needed > there:
        raise UserError(
            f"the logits of {min(len(rows), spec.max_batch_size)} sequences in flight take {needed / 1e9:.1f} GB of "
            f"memory, {there / 1e9:.1f} GB are there; build with a smaller --max_batch_size, or give shorter prompts"
        )
