"""Which step comes next: guessed while one runs, so that it can begin before the session asks for it."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import torch

from opt_trt.backends.inductor.decoder.program_table import is_generation, replayed_rows
from opt_trt.step import DecoderSpec, StepInputs

LOOKED_BACK = 16  # guesses
COMPARED = ("slot_mapping", "input_ids", "kv_lens")  # of a row; its position follows from its length
NEXT = 5  # column of `StepInputs.draws` with numbers for the next tokens
MOST_MISSES = 1  # of them; with more, steps begun for nothing may cost more than the others save


def next_step(inputs: StepInputs, spec: DecoderSpec) -> StepInputs | None:
    """The step in which each sequence brings the token this one chooses for it; its ids are rows of this one's tokens.

    None if the session knows better, if a token is not chosen for each, or has no place: a sequence gets its next block
    before it is needed where that can be. None, too, if that step is not one that is captured.
    """
    if not inputs.goes_on or not inputs.chooses or not _all_end(inputs):
        return None
    positions, size = inputs.kv_lens.long(), spec.tokens_per_block
    if int(positions.max()) >= min(spec.max_seq_len, inputs.block_tables.shape[1] * size):
        return None
    offsets = positions % size
    blocks = inputs.block_tables.gather(1, (positions // size).unsqueeze(1)).squeeze(1)
    if not bool((blocks + offsets).all()):  # a block 0 that would begin now is what a table ends with, or may be
        return None
    rows = torch.arange(len(positions) + 1)
    step = replace(
        inputs, input_ids=rows[:-1], position_ids=positions, slot_mapping=blocks * size + offsets,
        query_start=rows.int(), kv_lens=inputs.kv_lens + 1, last_token_ids=rows[:-1], draws=_next_draws(inputs.draws),
    )  # fmt: skip
    return step if replayed_rows(step) is not None else None


def rows_within(begun: StepInputs, asked: StepInputs, tokens_per_block: int) -> torch.Tensor | None:
    """The row of each sequence of a step in the one that was begun, int64 `[S]`; None if one is not there as it is.

    A row is what its KV cache, its place there and its token make it. Whose it is does not matter.
    """
    if replayed_rows(asked) is None or _choice(asked) != _choice(begun):
        return None
    slots, order = begun.slot_mapping.sort()
    rows = order[torch.searchsorted(slots, asked.slot_mapping).clamp(max=len(slots) - 1)]
    pairs = [(getattr(begun, name)[rows], getattr(asked, name)) for name in COMPARED]
    if asked.draws is not None and begun.draws is not None:
        pairs.append((begun.draws[rows, :NEXT], asked.draws[:, :NEXT]))
    if not all(torch.equal(guessed, found) for guessed, found in pairs):
        return None
    width = -(-int(asked.kv_lens.max()) // tokens_per_block)
    differ = asked.block_tables[:, :width] != begun.block_tables[rows, :width]
    is_read = torch.arange(width) * tokens_per_block < asked.kv_lens.unsqueeze(1)
    return None if bool((differ & is_read).any()) else rows


class Foresight:
    """How well the next steps were guessed of late."""

    def __init__(self) -> None:
        self._missed: deque[bool] = deque(maxlen=LOOKED_BACK)

    @property
    def is_good(self) -> bool:
        """Whether to act on the next guess."""
        return sum(self._missed) <= MOST_MISSES

    def learn(self, missed: bool) -> None:
        """Take down how a guess turned out, whether anybody acted on it or not."""
        self._missed.append(missed)


def _next_draws(draws: torch.Tensor | None) -> torch.Tensor | None:
    """The same rules, with the number for the next token; the one behind it is not known yet."""
    return None if draws is None else torch.cat((draws[:, : NEXT - 1], draws[:, NEXT:], draws[:, NEXT:]), 1)


def _choice(inputs: StepInputs) -> tuple[bool, bool]:
    return inputs.greedy, inputs.draws is not None


def _all_end(inputs: StepInputs) -> bool:
    """Whether the last token of every sequence, and no other, is asked for."""
    if len(inputs.last_token_ids) != len(inputs.kv_lens):
        return False
    return is_generation(inputs) or bool((inputs.last_token_ids == inputs.query_start[1:] - 1).all())
