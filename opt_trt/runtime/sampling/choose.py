"""Which token comes next: the largest logit, or one drawn by chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from opt_trt.errors import UserError, spelled
from opt_trt.runtime.request import RequestFailed
from opt_trt.runtime.sampling.candidates import draw_among_largest
from opt_trt.runtime.sampling.processors import CHANGES, FILTERS, process
from opt_trt.runtime.sequence import TokenSequence

SUMS_AT_ONCE = 2**17  # fp64 numbers that stay in the cache: 8 rows of 50,272 at once took 2.9 instead of 0.4 ms
Way = Callable[[torch.Tensor, Sequence[TokenSequence]], torch.Tensor]


def choose(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """The next token of each sequence as its request asks, from fp32 `[S, V]`: int64 `[S]`.

    No row depends on another, nor on how many there are. `UserError` if a row has no finite largest logit. A sequence
    whose request bans every token fails; its row means nothing.
    """
    ways: dict[Way, list[int]] = {}
    for row, sequence in enumerate(sequences):
        ways.setdefault(_way(sequence), []).append(row)
    if len(ways) == 1:
        return next(iter(ways))(logits, sequences)
    token_ids = torch.zeros(len(sequences), dtype=torch.int64)
    for way, rows in ways.items():
        token_ids[rows] = way(_take(logits, rows), [sequences[row] for row in rows])
    return token_ids


def accept_choice(logits: torch.Tensor, token_ids: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """The next tokens, int64 `[S]`, where the decoder has chosen them: `StepOutputs` of a token a row, `[S, 1]`.

    A drawn token uses up its sequence's number here, too. `UserError` if a row has no finite largest logit.
    """
    require_numbers(logits.squeeze(1).tolist())
    for sequence in sequences:
        if sequence.request.sampling.draws:
            sequence.random.random()
    return token_ids.squeeze(1)


def draw(logits: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """A token of each row of fp32 `[R, V]` by its softmax, found where a number from `[0, 1)` falls: int64 `[R]`."""
    rows_at_once = max(1, SUMS_AT_ONCE // logits.shape[1])
    numbers = torch.tensor(uniforms, dtype=torch.float64).unsqueeze(1)
    parts = [slice(first, first + rows_at_once) for first in range(0, len(uniforms), rows_at_once)]
    return torch.cat([draw_rows(logits[part], numbers[part]) for part in parts])


def draw_rows(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The same on any device, for numbers fp64 `[R, 1]` there."""
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))  # a product rounded up would fall behind the last one
    return torch.searchsorted(cumulative, torch.minimum(numbers * total, below_total), right=True).squeeze(1)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The position of the largest logit of each row of fp32 `[S, V]`, the first one on ties: int64 `[S]`.

    `UserError` if a row has a NaN or its largest logit is infinite: a maximum passes NaN on, so looking at `S` numbers
    finds one anywhere in the rows.
    """
    best, token_ids = largest(logits)
    require_numbers(best)
    return token_ids


def require_numbers(largest: Sequence[float]) -> None:
    """Raise `UserError` if a row's largest logit is NaN or infinite."""
    bad = [value for value in largest if not math.isfinite(value)]
    if bad:
        raise UserError(
            f"expected finite logits, the decoder returned {bad[0]}: its weights hold NaN or infinity, or overflow "
            f"their type; check the source checkpoint, or convert it with {spelled('dtype')} float32 and build again"
        )


def no_token_left(sequence: TokenSequence) -> RequestFailed:
    """What a request that bans every token fails by."""
    problem = f"has no token left to choose after {len(sequence.output_ids)} new ones; relax "
    return RequestFailed(sequence.index, problem + ", ".join(sequence.request.sampling.processors))


def _way(sequence: TokenSequence) -> Way:
    if not CHANGES.keys().isdisjoint(sequence.request.sampling.processors):
        return _choose_changed
    return _draw_by_chance if sequence.request.sampling.draws else _choose_largest


def _choose_largest(logits: torch.Tensor, _: Sequence[TokenSequence]) -> torch.Tensor:
    return greedy(logits)


def _choose_changed(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """The same for sequences that ask for other logits than the decoder's."""
    require_numbers(largest(logits)[0])
    changed = process(logits.clone(), sequences, CHANGES)
    best, token_ids = largest(changed)
    for sequence, value in zip(sequences, best, strict=True):
        if not math.isfinite(value):
            sequence.fail(no_token_left(sequence))
    drawn = [row for row, s in enumerate(sequences) if s.request.sampling.draws and s.error is None]
    if drawn:
        token_ids[drawn] = _draw_by_chance(_take(changed, drawn), [sequences[row] for row in drawn])
    return token_ids


def _draw_by_chance(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """A token of those that the filters keep, among the largest logits or in all of a row, as the row alone decides."""
    uniforms = [s.random.random() for s in sequences]
    found = draw_among_largest(logits, sequences, uniforms)
    left = [row for row, token_id in enumerate(found) if token_id is None]
    token_ids = torch.tensor([token_id or 0 for token_id in found])
    if left:
        whole = _take(logits, left)
        require_numbers(whole.amax(-1).tolist())
        kept = process(whole.clone(), [sequences[row] for row in left], FILTERS)
        token_ids[left] = draw(kept, [uniforms[row] for row in left])
    return token_ids


def _take(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some rows of `[R, V]`: a copy, unless they are all."""
    return logits if len(rows) == logits.shape[0] else logits.index_select(0, torch.tensor(rows))


def largest(rows: torch.Tensor) -> tuple[list[float], torch.Tensor]:
    """The largest number of each row of fp32 `[S, V]`, NaN where a row has one, and its first place, int64 `[S]`."""
    numbers = rows.numpy()  # the same memory; its argmax has vector instructions, ATen's for a CPU has none
    where = numbers.argmax(-1)
    return [row.item(place) for row, place in zip(numbers, where.tolist(), strict=True)], torch.from_numpy(where)


def largest_there(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as tensors where the rows lie: on a GPU nobody waits for them, for a step may be being captured."""
    if rows.device.type != "cpu":
        best, places = rows.max(-1)
        return best, places
    numbers, places = largest(rows)
    return torch.tensor(numbers), places
