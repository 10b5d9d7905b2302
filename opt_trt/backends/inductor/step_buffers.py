"""The inputs of captured steps: a graph reads them where they lay when it was captured."""

from __future__ import annotations

import torch

from opt_trt.step import StepInputs

ALIGNED = 2  # int64 words: compiled programs copy what does not begin at 16 bytes
NO_SLOT = -1  # the token is not appended to the KV cache


class StepBuffers:
    """Inputs of generation steps of up to `rows` sequences, with `width` blocks each at most.

    What a step leaves over is filled with sequences of one token that change nothing. All of it is one piece of
    memory on either side, so that a step is one copy.
    """

    def __init__(self, rows: int, width: int, device: str) -> None:
        counts = [rows] * 3 + [_words(rows), _words(rows * width)]
        sizes = [-(-count // ALIGNED) * ALIGNED for count in counts]
        self._host = torch.zeros(sum(sizes), dtype=torch.int64, pin_memory=device != "cpu")
        self._device = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self._ids, self._positions, self._slots, self._lens, self._tables = _cut(self._host, sizes, rows, width)
        ids, positions, slots, lens, tables = _cut(self._device, sizes, rows, width)
        starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.inputs = StepInputs(ids, positions, slots, starts, lens, tables, torch.arange(rows, device=device))

    def fill(self, inputs: StepInputs) -> None:
        """Put a step into place. The step before must be over: its copy reads the same memory."""
        count, width = inputs.block_tables.shape
        for buffer, values, rest in (
            (self._ids, inputs.input_ids, 0),
            (self._positions, inputs.position_ids, 0),
            (self._slots, inputs.slot_mapping, NO_SLOT),
            (self._lens, inputs.kv_lens, 1),
        ):
            buffer[:count] = values
            buffer[count:] = rest
        self._tables[:count, :width] = inputs.block_tables  # what lies beyond is not read
        self._device.copy_(self._host, non_blocking=True)


def _words(numbers: int) -> int:
    """int64 that hold so many int32."""
    return -(-numbers // 2)


def _cut(memory: torch.Tensor, sizes: list[int], rows: int, width: int) -> list[torch.Tensor]:
    """Token ids, positions and slots, int64; lengths [rows] and block tables [rows, width], int32."""
    *long, lens, tables = memory.split_with_sizes(sizes)
    short = tables.view(torch.int32)[: rows * width].view(rows, width)
    return [*(part[:rows] for part in long), lens.view(torch.int32)[:rows], short]
