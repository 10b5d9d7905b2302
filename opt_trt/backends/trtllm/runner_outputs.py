"""What a runner's `generate` returned, row by row; tensors are on its GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Outputs:
    """The dictionary of one call, or of one step of a stream; of `vocab_size` tokens, without the padding behind."""

    tensors: Tensors
    vocab_size: int

    def new_ids(self, row: int, column: int, prompt_len: int) -> list[int]:
        """New tokens of a sequence so far: prompts are in front of them and the end id fills what is behind."""
        end = int(self.tensors["sequence_lengths"][row, column])
        ids: list[int] = self.tensors["output_ids"][row, column, prompt_len:end].tolist()
        return ids

    def context_logits(self, row: int) -> torch.Tensor:
        """fp32 `[P, V]` of a prompt."""
        return self.tensors["context_logits"][row][:, : self.vocab_size].float().cpu()

    def generation_logits(self, row: int, column: int) -> torch.Tensor:
        """fp32 `[N, V]`, a row for each new token and more behind."""
        return self.tensors["generation_logits"][row, column, :, : self.vocab_size].float().cpu()

    def log_probs(self, row: int, column: int, count: int) -> list[float]:
        """Of `count` new tokens and of the end id behind them, whose is what is left of the whole output's."""
        known: list[float] = self.tensors["log_probs"][row, column, :count].tolist()
        return [*known, self.cum_log_prob(row, column) - math.fsum(known)]

    def cum_log_prob(self, row: int, column: int) -> float:
        """Of a whole output; not a number where the runner does not tell."""
        cum = self.tensors.get("cum_log_probs")
        return math.nan if cum is None else float(cum[row, column])
