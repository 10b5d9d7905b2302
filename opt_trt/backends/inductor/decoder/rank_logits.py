"""The logits of a step from the parts of the vocabulary that ranks hold: all of them, or the largest of each part."""

from __future__ import annotations

import torch

from opt_trt.model.mapping import Mapping
from opt_trt.ops import Collectives
from opt_trt.runtime.sampling.choose import largest_there
from opt_trt.runtime.sampling.on_device import drawn
from opt_trt.step import StepInputs, StepOutputs


class RankLogits:
    """What a tensor-parallel rank does with its part of the logits, fp32 `[L, ceil(V / tp)]`; all do so together.

    Between ranks and devices, outputs are one fp32 tensor `[L, width]`. Of a greedy step it has a logit and its token,
    an integer that fp32 holds exactly, for each rank: 8 bytes a row and rank, whatever the vocabulary. So it has of one
    that draws, with the largest logit and the token drawn.
    """

    def __init__(
        self, mapping: Mapping, rank: int, vocab_size: int, ops: Collectives, *, is_local: bool = True
    ) -> None:
        """`is_local` says whether the memory logits are computed in is the session's."""
        self._ops = ops
        self._tp_size, self._vocab_size = mapping.tp_size, vocab_size
        self._travel = mapping.world_size > 1 or not is_local
        self._first = mapping.tp_rank(rank) * -(-vocab_size // mapping.tp_size)  # token of this rank's first column

    def width(self, inputs: StepInputs) -> int:
        """Numbers a row of what `join` returns."""
        return 2 * self._tp_size if self._reduces(inputs) else self._vocab_size

    def join(self, part: torch.Tensor, inputs: StepInputs) -> torch.Tensor:
        """What is passed on of this rank's part and all others: `[L, width]`."""
        own = self._chosen(part, inputs) if self._reduces(inputs) else part
        return self._ops.all_gather(own, self.width(inputs)) if self._tp_size > 1 else own

    def outputs(self, joined: torch.Tensor, inputs: StepInputs, hidden: torch.Tensor | None) -> StepOutputs:
        """What was joined, as the step's outputs."""
        if not self._reduces(inputs):
            return StepOutputs(joined, hidden)
        logits, token_ids = joined.view(-1, self._tp_size, 2).unbind(-1)
        return StepOutputs(logits, hidden, token_ids.long())

    def _chosen(self, part: torch.Tensor, inputs: StepInputs) -> torch.Tensor:
        part[:, max(0, self._vocab_size - self._first) :].fill_(-torch.inf)  # padding, which the last ranks have
        best, places = largest_there(part)
        if inputs.draws is not None:
            assert self._tp_size == 1, "a rank sees a part of the vocabulary"
            places = drawn(part, inputs.draws)
        return torch.stack((best, (places + self._first).float()), 1)

    def _reduces(self, inputs: StepInputs) -> bool:
        return inputs.chooses and self._travel
