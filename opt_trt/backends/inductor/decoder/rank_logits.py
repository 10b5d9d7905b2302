"""Join the logits of a step from the parts of the vocabulary that ranks hold: all logits, or one token a part."""

from __future__ import annotations

import torch

from opt_trt.model.mapping import Mapping
from opt_trt.ops import Collectives
from opt_trt.runtime.sampling.on_device import choice
from opt_trt.step import StepInputs, StepOutputs


class RankLogits:
    """A tensor-parallel rank's part of the logits, fp32 `[L, ceil(V / tp)]`, joined with the parts of all other ranks.

    Outputs travel between ranks and devices as one fp32 tensor `[L, width]`. A greedy step sends the largest logit and
    its token for each rank, 8 bytes a row and rank for any vocabulary; fp32 holds the token exactly. A sampling step
    sends the largest logit and the sampled token in the same form.
    """

    def __init__(
        self, mapping: Mapping, rank: int, vocab_size: int, ops: Collectives, *, is_local: bool = True
    ) -> None:
        """Prepare to join; `is_local` says whether logits are computed in the memory that the session reads."""
        self._ops = ops
        self._tp_size, self._vocab_size = mapping.tp_size, vocab_size
        self._are_sent = mapping.world_size > 1 or not is_local
        self._first = mapping.tp_rank(rank) * -(-vocab_size // mapping.tp_size)  # the token of this rank's first column

    def width(self, inputs: StepInputs) -> int:
        """Return how many numbers a row of `join` has."""
        return 2 * self._tp_size if self._reduces(inputs) else self._vocab_size

    def join(self, part: torch.Tensor, inputs: StepInputs) -> torch.Tensor:
        """Join this rank's part with those of all other ranks: `[L, width]`."""
        own = self._chosen(part, inputs) if self._reduces(inputs) else part
        return self._ops.all_gather(own, self.width(inputs)) if self._tp_size > 1 else own

    def outputs(self, joined: torch.Tensor, inputs: StepInputs, hidden: torch.Tensor | None) -> StepOutputs:
        """Turn joined logits into the step's outputs."""
        if not self._reduces(inputs):
            return StepOutputs(joined, hidden)
        logits, token_ids = joined.view(-1, self._tp_size, 2).unbind(-1)
        return StepOutputs(logits, hidden, token_ids.long())

    def _chosen(self, part: torch.Tensor, inputs: StepInputs) -> torch.Tensor:
        """Choose a token of each row: the largest logit and the token's number, [L, 2]."""
        part[:, max(0, self._vocab_size - self._first) :].fill_(-torch.inf)  # the padding of the last ranks
        assert self._tp_size == 1 or inputs.draws is None, "a rank sees only a part of the vocabulary"
        best, places = choice(part, inputs.draws)
        return torch.stack((best, (places + self._first).float()), 1)

    def _reduces(self, inputs: StepInputs) -> bool:
        """Say whether one token of each row is sent instead of all its logits."""
        return inputs.chooses and self._are_sent
