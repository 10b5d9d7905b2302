"""Write the tensors of a rank into a safetensors file, in any order and from several threads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType

import torch

from opt_trt.errors import UserError

DTYPE_CODES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
DATA_ALIGNMENT = 64  # bytes; the header is padded so that the first tensor starts on a cache line
WRITE_CHUNK = 1 << 20  # bytes of one write: larger writes make Linux use huge pages, slow on virtual machines
GATHER_BYTES = 1 << 20  # bytes of a strided tensor that are copied together before they are written
PLAIN = MappingProxyType({"format": "pt"})  # the default metadata of a file
LISTED = 6  # the number of differences that an error names


def rank_metadata(rank: int) -> dict[str, str]:
    """Return the metadata of a rank's file in a checkpoint: files of two ranks may have the same names and shapes."""
    return {**PLAIN, "rank": str(rank)}


@dataclass(frozen=True)
class TensorSpec:
    """The required shape and dtype of a tensor in a rank file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The number of bytes of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{DTYPE_CODES.get(self.dtype, self.dtype)}{list(self.shape)}"


class RankWriter:
    """A rank file that is being written, as a context manager, in a directory that is renamed when it is complete.

    At the end, one `UserError` reports all missing, unexpected, repeated and mis-shaped tensors.
    """

    def __init__(self, path: Path, spec: dict[str, TensorSpec], metadata: Mapping[str, str] = PLAIN) -> None:
        self.path, self._spec = path, spec
        self._offsets, self._header = _layout(spec, metadata)
        self._missing, self._problems, self._lock = set(spec), list[str](), Lock()

    def __enter__(self) -> RankWriter:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._put(memoryview(self._header), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if error is None:
            missing = [f"{name} is missing" for name in self._spec if name in self._missing]
            refuse_differences(self.path, self._problems + missing)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor of any stride into its place in the file, in row-major order."""
        if self._accept(name, TensorSpec(tuple(tensor.shape), tensor.dtype)):
            start = offset = len(self._header) + self._offsets[name]
            for block in _in_order(tensor):
                self._put(block.flatten().view(torch.uint8).numpy().data, offset)
                offset += block.nbytes
            os.posix_fadvise(self._descriptor, start, tensor.nbytes, os.POSIX_FADV_DONTNEED)  # starts the disk now

    def _accept(self, name: str, found: TensorSpec) -> bool:
        with self._lock:
            problem = ""
            if name not in self._missing:
                problem = f"{name} {'came twice' if name in self._spec else 'is unexpected'}"
            elif found != self._spec[name]:
                problem = f"{name} is {found}, expected {self._spec[name]}"
            self._missing.discard(name)
            self._problems += [problem] * bool(problem)
            return not problem

    def _put(self, view: memoryview, offset: int) -> None:
        try:
            write_all(self._descriptor, view, offset)
        except OSError as error:
            if error.filename is None:
                error.filename = str(self.path)
            raise


def write_rank(
    path: Path,
    spec: dict[str, TensorSpec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str] = PLAIN,
) -> None:
    """Write a whole rank file from an iterator, with one tensor in memory at a time."""
    with RankWriter(path, spec, metadata) as writer:
        for name, tensor in tensors:
            writer.write(name, tensor)
            del tensor  # frees it before the next one is made


def write_all(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all bytes of a view at an offset of a file."""
    while view:
        count = os.pwrite(descriptor, view[:WRITE_CHUNK], offset)
        view, offset = view[count:], offset + count


def refuse_differences(path: Path, problems: list[str]) -> None:
    """Raise one `UserError` for all `problems` of a rank file; do nothing if there are none."""
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise UserError(
            f"{path} does not hold the tensors its config.json asks for: {'; '.join(problems[:LISTED])}{more}; "
            "convert the model again"
        )


def _in_order(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor as contiguous blocks of rows: the tensor itself, or copies that fit the processor's cache."""
    if tensor.is_contiguous():
        yield tensor
        return
    rows = max(1, GATHER_BYTES * len(tensor) // tensor.nbytes)
    yield from (tensor[start : start + rows].contiguous() for start in range(0, len(tensor), rows))


def _layout(spec: dict[str, TensorSpec], metadata: Mapping[str, str]) -> tuple[dict[str, int], bytes]:
    """Return the offset of each tensor behind the header, and the header itself: length, JSON, padding."""
    offsets, end, entries = {}, 0, {}
    for name, tensor in spec.items():
        offsets[name] = end
        end += tensor.nbytes
        code = DTYPE_CODES[tensor.dtype]
        entries[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offsets[name], end]}
    text = json.dumps({"__metadata__": dict(metadata)} | entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    return offsets, len(text).to_bytes(8, "little") + text
