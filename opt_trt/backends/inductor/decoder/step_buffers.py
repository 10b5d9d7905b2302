"""The inputs of captured steps: a graph always reads them from the memory where they lay at its capture."""

from __future__ import annotations

import torch

from opt_trt.step import LARGEST, StepInputs

ALIGNED = 2  # int64 words, 16 bytes: compiled programs copy inputs that do not begin at a multiple of it
NO_SLOT = -1  # the token is not appended to the KV cache


class StepBuffers:
    """Inputs of generation steps of up to `rows` sequences, each of which has at most `width` blocks.

    Unused rows hold one-token sequences that write nothing. The inputs are one piece of memory on the host and one on
    the device, so that one copy moves a step.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        counts = [rows] * 3 + [rows * len(LARGEST), _words(rows), _words(rows * width)]
        self._sizes = [-(-count // ALIGNED) * ALIGNED for count in counts]
        self._shape = (rows, width)
        self._is_pinned = device.type != "cpu"
        self._memory = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)
        ids, positions, slots, draws, lens, tables = self._cut(self._memory)
        starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        last = torch.arange(rows, device=device)
        self.inputs = StepInputs(ids, positions, slots, starts, lens, tables, last, draws=draws)

    def packed(self, inputs: StepInputs) -> torch.Tensor:
        """Pack a step for `load`, in new memory of the host: copies from the memory of earlier steps may still wait."""
        memory = torch.zeros(sum(self._sizes), dtype=torch.int64, pin_memory=self._is_pinned)
        ids, positions, slots, draws, lens, tables = self._cut(memory)
        count, width = inputs.block_tables.shape
        for buffer, values, rest in (
            (ids, inputs.input_ids, 0),
            (positions, inputs.position_ids, 0),
            (slots, inputs.slot_mapping, NO_SLOT),
            (lens, inputs.kv_lens, 1),
        ):
            buffer[:count] = values
            buffer[count:] = rest
        if inputs.draws is not None:
            draws[:count] = inputs.draws
            draws[count:] = torch.tensor(LARGEST)
        tables[:count, :width] = inputs.block_tables  # entries beyond the step's width are not read
        return memory

    def load(self, packed: torch.Tensor, chosen: torch.Tensor | None = None) -> None:
        """Copy a packed step to the device. If `chosen` holds the last step's tokens, input ids are indices into it."""
        self._memory.copy_(packed, non_blocking=True)
        if chosen is not None:
            self.inputs.input_ids.copy_(chosen[self.inputs.input_ids])

    def _cut(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """Cut memory: ids, positions and slots, int64; draws; lengths [rows] and block tables [rows, width], int32."""
        rows, width = self._shape
        *long, draws, lens, tables = memory.split_with_sizes(self._sizes)
        rules = draws.view(torch.float64)[: rows * len(LARGEST)].view(rows, len(LARGEST))
        short = tables.view(torch.int32)[: rows * width].view(rows, width)
        return [*(part[:rows] for part in long), rules, lens.view(torch.int32)[:rows], short]


def _words(numbers: int) -> int:
    """Return how many int64 hold so many int32."""
    return -(-numbers // 2)
