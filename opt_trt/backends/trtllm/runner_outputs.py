"""The outputs of a runner's `generate`, row by row; tensors are on its GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Outputs:
    """The dictionary of one call, or of one step of a stream; logits are cut to `vocab_size` tokens."""

    tensors: Tensors
    vocab_size: int

    def new_ids(self, row: int, column: int, prompt_len: int) -> list[int]:
        """Return the new tokens of a sequence so far, without the prompt before them and the padding after them."""
        end = int(self.tensors["sequence_lengths"][row, column])
        ids: list[int] = self.tensors["output_ids"][row, column, prompt_len:end].tolist()
        return ids

    def context_logits(self, row: int) -> torch.Tensor:
        """Return the context logits of a prompt: fp32 `[P, V]`."""
        return self.tensors["context_logits"][row][:, : self.vocab_size].float().cpu()

    def generation_logits(self, row: int, column: int) -> torch.Tensor:
        """Return the generation logits: fp32 `[N, V]`, a row for each new token, and possibly more."""
        return self.tensors["generation_logits"][row, column, :, : self.vocab_size].float().cpu()

    def log_probs(self, row: int, column: int, count: int) -> list[float]:
        """Return those of `count` new tokens and of the end id after them, which has the rest of the output's sum."""
        known: list[float] = self.tensors["log_probs"][row, column, :count].tolist()
        return [*known, self.cum_log_prob(row, column) - math.fsum(known)]

    def cum_log_prob(self, row: int, column: int) -> float:
        """Return the log-probability of a whole output; not a number if the runner does not report it."""
        cum = self.tensors.get("cum_log_probs")
        return math.nan if cum is None else float(cum[row, column])
