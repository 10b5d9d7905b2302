"""The files of all ranks: each canonical tensor is cut, its parts are quantized and packed, and written to the files.

All rank files are open at once, so that the source is read only once. A worker frees its tensor before it takes the
next one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType

import torch

from opt_trt.checkpoint.reader import rank_file
from opt_trt.checkpoint.spec import packed_mode, tensor_spec
from opt_trt.checkpoint.weight_only import Observe, quantize_and_pack, quantized_blocks
from opt_trt.checkpoint.writer import RankWriter, rank_metadata
from opt_trt.convert.quant_report import QuantReport, Shard
from opt_trt.model.config import ModelConfig
from opt_trt.model.placement import LAYER, is_linear, placements, stage_names
from opt_trt.quant.mode import scale_name


class RankFiles:
    """The files of all ranks of a checkpoint that is being written, as a context manager."""

    def __init__(
        self,
        directory: Path,
        config: ModelConfig,
        advance: Callable[[int], object],
        report: QuantReport | None = None,
    ) -> None:
        """Call `advance` with the bytes of every written tensor; add the quantized blocks of linears to `report`."""
        self._config, self._advance, self._lock, self._report = config, advance, Lock(), report
        self._mode, self._placements = packed_mode(config), placements(config)
        self._names = [stage_names(config, stage) for stage in range(config.mapping.pp_size)]
        ranks = range(config.mapping.world_size)
        self._writers = [
            RankWriter(rank_file(directory, rank), tensor_spec(config, rank), rank_metadata(rank)) for rank in ranks
        ]

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
        """Write a tensor of the whole model to every rank that holds a part of it; several threads may call this."""
        whole, values = tensor
        mapping = self._config.mapping
        for rank, writer in enumerate(self._writers):
            name = self._names[mapping.pp_rank(rank)].get(whole)
            if name is not None:
                part = self._placements[whole].cut(values, mapping.tp_size, mapping.tp_rank(rank))
                self._write_part(writer, name, part, self._observer(whole, rank))

    def _observer(self, whole: str, rank: int) -> Observe | None:
        """Return the function that adds the quantized blocks of a linear to the report, if there is one."""
        layer = LAYER.fullmatch(whole)
        if self._report is None or layer is None or not is_linear(whole):
            return None
        tp_rank = self._config.mapping.tp_rank(rank)
        return partial(self._report.add, Shard(layer[2].removesuffix(".weight"), tp_rank, int(layer[1]), rank))

    def _write_part(self, writer: RankWriter, name: str, part: torch.Tensor, observe: Observe | None) -> None:
        stored = {name: part}
        if self._mode is not None and is_linear(name):
            assert self._config.target_sm is not None
            packed = quantize_and_pack(part, self._mode, self._config.target_sm, observe)
            stored[name], stored[scale_name(name)] = packed
        elif self._report is not None and observe is not None:  # the builder will quantize this weight
            for _, *block in quantized_blocks(part, self._report.mode):
                observe(*block)
        for stored_name, tensor in stored.items():
            writer.write(stored_name, tensor)
            with self._lock:
                self._advance(tensor.nbytes)
