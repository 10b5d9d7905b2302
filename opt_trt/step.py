"""The contract between decoder and session: the inputs and outputs of one step of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from opt_trt.config.sampling import FILTERS, GREEDY


class DrawColumns(NamedTuple):
    """The columns of `StepInputs.draws`; a row of it says how one token is drawn."""

    filters: slice  # a column for each of `FILTERS`, in their order, as `Sampling.filters` has them
    number: slice  # a number from [0, 1): the token drawn is the one at which it falls
    next_number: slice  # the same number for the token behind that one, if it is known


NUM_FILTERS = len(FILTERS)
DRAW_COLUMNS = DrawColumns(
    slice(0, NUM_FILTERS), slice(NUM_FILTERS, NUM_FILTERS + 1), slice(NUM_FILTERS + 1, NUM_FILTERS + 2)
)
LARGEST = (*map(float, GREEDY.filters), 0.0, 0.0)  # a row that takes the first of the largest logits: its top-k is 1


@dataclass(frozen=True)
class StepInputs:
    """One packed step: the tokens of all sequences, one after another, with context and generation phases mixed.

    There are `T` tokens of `S` sequences; `B` is the longest block table of the step. Every tensor is contiguous and in
    the memory of the CPU: a decoder on another device copies it. Tokens `query_start[s]:query_start[s + 1]` belong to
    sequence `s`. They are the last of the `kv_lens[s]` tokens that it has after this step.
    """

    input_ids: torch.Tensor  # int64 [T]
    position_ids: torch.Tensor  # int64 [T], position in its sequence, from 0
    slot_mapping: torch.Tensor  # int64 [T], block * tokens_per_block + offset of each token's KV
    query_start: torch.Tensor  # int32 [S + 1]
    kv_lens: torch.Tensor  # int32 [S]
    block_tables: torch.Tensor  # int32 [S, B], padded with 0
    last_token_ids: torch.Tensor  # int64 [L], packed indices of the tokens whose logits are wanted
    hidden_token_ids: torch.Tensor | None = None  # int64 [M], the same for wanted hidden states; None for none
    greedy: bool = False  # only the largest of the wanted logits of each row matters
    # Only a token drawn from each row of the wanted logits matters, and whether the largest is a number.
    draws: torch.Tensor | None = None  # fp64 [L, len(LARGEST)], see `DrawColumns`
    goes_on: bool = False  # the next step should be one of the same sequences, those that end left out

    @property
    def chooses(self) -> bool:
        """True if only the chosen token of each row matters."""
        return self.greedy or self.draws is not None


@dataclass(frozen=True)
class StepOutputs:
    """The results of a step for the requested tokens, in the order in which the inputs name them; on the CPU.

    The hidden state of a token is the `E` numbers behind the last layer and its norm, from which logits are computed.
    """

    logits: torch.Tensor  # fp32 [L, V]; or [L, C], of `token_ids` only, if these are given
    hidden: torch.Tensor | None = None  # fp32 [M, E]; None if none were requested
    # int64 [L, C], ascending in each row: a greedy step may return a few candidates, a step that draws the token drawn.
    # If there is one token in each row, it is chosen, and `logits` has the largest logit of the row.
    token_ids: torch.Tensor | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """The facts that a session needs about a decoder: limits, the shape of its KV cache and special tokens."""

    num_layers: int
    num_heads: int
    head_size: int
    vocab_size: int
    kv_dtype: torch.dtype
    tokens_per_block: int
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    gather_context_logits: bool
    gather_generation_logits: bool
    end_id: int  # the model's end token, which fills rows
    pad_id: int
    device: str = "cpu"  # where the decoder computes and its KV cache lies: "cpu" or "cuda"
    sharers: int | None = None  # the number of ranks that share the device's memory; None: all ranks of this host
    draws: bool = False  # whether it takes `StepInputs.draws`
    block_option: str = "tokens_per_block"  # the build option by which blocks become smaller
    begins_early: bool = False  # whether it begins steps early, if sequences have the blocks for them
    end_token_ids: tuple[int, ...] | None = None  # tokens that end an output; None: `end_id` alone

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an output unless a request says otherwise; without any, only its length does."""
        return (self.end_id,) if self.end_token_ids is None else self.end_token_ids

    def kv_block_bytes(self) -> int:
        """Return the bytes of one block over all layers, keys and values."""
        token = 2 * self.num_heads * self.head_size * self.kv_dtype.itemsize
        return self.num_layers * self.tokens_per_block * token

    def kv_shape(self, num_blocks: int) -> tuple[int, ...]:
        """Return the shape of one layer's cache: `[blocks, keys | values, heads, tokens_per_block, head_size]`."""
        return (num_blocks, 2, self.num_heads, self.tokens_per_block, self.head_size)


class Decoder(Protocol):
    """A forward pass that is ready to run; it owns weights and programs, but not the KV cache."""

    @property
    def spec(self) -> DecoderSpec:
        """The facts that a session needs."""
        ...

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """Append the step's keys and values to `kv_cache` (one tensor per layer) and return the requested outputs."""
        ...
