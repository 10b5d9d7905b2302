"""What Hugging Face and the engine have in common: token ids in, token ids out, and how likely a text is to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Demand:
    """What a run will ask of a model, in tokens: to be checked before hours are spent."""

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
        """New tokens of each prompt, the end token included where one was generated."""
        ...

    def mean_nll(self, prompt: TokenIds, output: TokenIds) -> float:
        """Mean negative log-likelihood of all tokens but the first of prompt and output together."""
        ...
