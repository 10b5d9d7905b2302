"""The interface that Hugging Face and an engine share: continue prompts, and score texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Demand:
    """The sizes in tokens that a run needs of a model: they are checked before it starts."""

    longest_prompt: int
    largest_id: int
    output_len: int
    perplexity: bool


class Summarizer(Protocol):
    """A model that continues prompts."""

    def check(self, demand: Demand) -> None:
        """Raise `UserError` when the run cannot succeed."""
        ...

    def generate(self, prompts: Sequence[TokenIds]) -> list[TokenIds]:
        """Return the new tokens of each prompt, including the end token where one was generated."""
        ...

    def mean_nll(self, prompt: TokenIds, output: TokenIds) -> float:
        """Return the mean negative log-likelihood of all tokens but the first, of prompt and output together."""
        ...
