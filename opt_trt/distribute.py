"""Give every canonical tensor to the ranks: cut it, quantize and pack each part, write it to the rank's file.

All rank files are open at once, so the source is read once, whatever the number of ranks; a tensor is gone before the
worker takes the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Lock, local
from types import TracebackType
from typing import TypeVar

import torch

from opt_trt.checkpoint import rank_file
from opt_trt.checkpoint.spec import packed_mode, scale_name, tensor_spec
from opt_trt.checkpoint.writer import RankWriter
from opt_trt.config.model import ModelConfig
from opt_trt.packing import pack
from opt_trt.quant.mode import QuantMode
from opt_trt.shard import is_linear, placements, stage_names

BLOCK_ELEMENTS = 1 << 18  # quantized at a time: the fp32 steps in between stay in the processor's cache
BLOCK_ROWS = 64  # output features of a block are a multiple of this, as packing needs

Item = TypeVar("Item")


class RankFiles:
    """The files of all ranks of a checkpoint while they are written; use it in a `with` block."""

    def __init__(self, directory: Path, config: ModelConfig, advance: Callable[[int], object]) -> None:
        """`advance` is told the bytes of every tensor that was written."""
        self._config, self._advance, self._lock = config, advance, Lock()
        self._mode, self._placements = packed_mode(config), placements(config)
        self._names = [stage_names(config, stage) for stage in range(config.mapping.pp_size)]
        ranks = range(config.mapping.world_size)
        self._writers = [RankWriter(rank_file(directory, rank), tensor_spec(config, rank)) for rank in ranks]

    def __enter__(self) -> RankFiles:
        with ExitStack() as stack:
            for writer in self._writers:
                stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, tensor: tuple[str, torch.Tensor]) -> None:
        """Write a tensor of the whole model to every rank that holds a part of it; threads may do so side by side."""
        whole, values = tensor
        mapping = self._config.mapping
        for rank, writer in enumerate(self._writers):
            name = self._names[mapping.pp_rank(rank)].get(whole)
            if name is not None:
                part = self._placements[whole].cut(values, mapping.tp_size, mapping.tp_rank(rank))
                self._write_part(writer, name, part)

    def _write_part(self, writer: RankWriter, name: str, part: torch.Tensor) -> None:
        stored = {name: part}
        if self._mode is not None and is_linear(name):
            assert self._config.target_sm is not None
            stored[name], stored[scale_name(name)] = quantize_and_pack(part, self._mode, self._config.target_sm)
        for stored_name, tensor in stored.items():
            writer.write(stored_name, tensor)
            with self._lock:
                self._advance(tensor.nbytes)


def quantize_and_pack(weight: torch.Tensor, mode: QuantMode, sm: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a checkpoint stores of a weight `[out, in]`: the packed tensor and its per_channel_scale.

    Works on blocks of output features: beside its input it holds its output and a few MiB.
    """
    shape, scale_shape = mode.spec(*weight.shape)
    packed, scale = torch.empty(shape, dtype=torch.int8), torch.empty(scale_shape, dtype=weight.dtype)
    rows = max(BLOCK_ROWS, BLOCK_ELEMENTS // weight.shape[1] // BLOCK_ROWS * BLOCK_ROWS)
    stored = packed.view(-1)
    for start in range(0, len(weight), rows):
        q, scale[start : start + rows] = mode.quantize(weight[start : start + rows])
        block = pack(q, mode.bits, sm).view(-1)
        first = start * weight.shape[1] * mode.bits // 8
        stored[first : first + len(block)] = block
    return packed, scale


class Scratch(local):
    """Memory for a tensor per thread, used again for its next one: fresh pages cost more than what is copied there."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized tensor, valid until the same thread asks for another."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # before the larger one is made
            self._memory = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory[:nbytes].view(dtype).view(shape)


def for_each(items: Iterator[Item], work: Callable[[Item], None], workers: int) -> None:
    """Do `work` for every item, `workers` at a time; no more items than workers exist, and the first failure is raised.

    Items are made one after another: the iterator need not know of threads.
    """
    taking, stop = Lock(), Event()

    def drain() -> None:
        try:
            while not stop.is_set():
                with taking:
                    item = next(items, None)
                if item is None:
                    return
                work(item)
                del item  # before the next one is made
        except BaseException:
            stop.set()
            raise

    if workers == 1:
        drain()
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            running = [pool.submit(drain) for _ in range(workers)]
            for failed in wait(running, return_when=FIRST_EXCEPTION).done:
                failed.result()
        finally:
            stop.set()
