"""Steps begun before they are asked for: while the session looks at a step's tokens, the GPU computes the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import ReferenceType, ref

import torch

from opt_trt.backends.inductor.decoder.launch import Launch
from opt_trt.backends.inductor.decoder.program_table import is_generation, replayed_rows
from opt_trt.step import DRAW_COLUMNS, DecoderSpec, StepInputs


class Launcher(Protocol):
    """What gives the GPU a step; ids are rows of what the step `before` has chosen, where that is given."""

    def __call__(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor], before: Launch | None = None) -> Launch:
        """Launch it, and wait for nothing."""
        ...


@dataclass(frozen=True)
class Guess:
    """The step that should be asked for next, over which KV cache, and its launch if it has begun."""

    step: StepInputs
    first_layer: ReferenceType[torch.Tensor]  # the session may free it
    launch: Launch | None


class Ahead:
    """Answers steps, as far as it can from what it began.

    The next step is launched as soon as the last one is, before anybody waits for that: tokens go from one to the next
    on the GPU, and of what a step is made of nothing else is new. It is compared with what is asked for then. Rows that
    nobody asks for any more are dropped. Where one is asked for that is not there, all of it is dropped, and the step
    computed as it is: a part of it would cost as much, for each reads all weights once.

    What a dropped row wrote into the KV cache is never seen. It lies behind all tokens that its sequence has there, in
    a block that is not full and so is nobody else's; who gets the block, or goes on from there, has its own tokens
    written, or copied, behind it in the order of launches, and reads no more than those.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        self._spec = spec
        self._foresight = Foresight()
        self._guess: Guess | None = None

    def step(
        self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor], launch: Launcher
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `Launch.read` gives of the step, once the next one has begun."""
        launched, rows = self._begun(inputs, kv_cache) or (launch(inputs, kv_cache), None)
        following, early = next_step(inputs, self._spec), None
        if following is not None and self._foresight.is_good:
            early = launch(following if rows is None else replace(following, input_ids=rows), kv_cache, launched)
        joined, hidden = launched.read()
        joined = joined if rows is None else joined[rows]
        if following is not None:
            self._guess = Guess(replace(following, input_ids=joined[:, 1].long()), ref(kv_cache[0]), early)
        return joined, hidden

    def _begun(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> tuple[Launch, torch.Tensor] | None:
        """The launch that has computed the step already, and its rows there."""
        guess, self._guess = self._guess, None  # whatever happens, none is used twice
        if guess is None or guess.first_layer() is not kv_cache[0]:
            return None
        rows = rows_within(guess.step, inputs, self._spec.tokens_per_block)
        self._foresight.learn(missed=rows is None)
        return None if rows is None or guess.launch is None else (guess.launch, rows)


LOOKED_BACK = 16  # guesses


COMPARED = ("slot_mapping", "input_ids", "kv_lens")  # of a row; its position follows from its length


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
        known = (DRAW_COLUMNS.filters, DRAW_COLUMNS.number)
        pairs += [(begun.draws[rows, columns], asked.draws[:, columns]) for columns in known]
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
    if draws is None:
        return None
    filters, _, coming = (draws[:, columns] for columns in DRAW_COLUMNS)
    return torch.cat((filters, coming, coming), 1)


def _choice(inputs: StepInputs) -> tuple[bool, bool]:
    return inputs.greedy, inputs.draws is not None


def _all_end(inputs: StepInputs) -> bool:
    """Whether the last token of every sequence, and no other, is asked for."""
    if len(inputs.last_token_ids) != len(inputs.kv_lens):
        return False
    return is_generation(inputs) or bool((inputs.last_token_ids == inputs.query_start[1:] - 1).all())
