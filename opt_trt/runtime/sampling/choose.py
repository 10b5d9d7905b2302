"""Choose the next token: the one with the largest logit, or one drawn by chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from opt_trt.errors import UserError, spelled
from opt_trt.runtime.request import RequestFailed
from opt_trt.runtime.sampling.candidates import draw_among_largest
from opt_trt.runtime.sampling.filters import FILTERS
from opt_trt.runtime.sampling.processors import CHANGES, process
from opt_trt.runtime.sequence import TokenSequence

SUMS_AT_ONCE = 2**17  # fp64 numbers that fit into the cache: 8 rows of 50,272 at once took 2.9 ms, not 0.4 ms
Way = Callable[[torch.Tensor, Sequence[TokenSequence]], torch.Tensor]


def choose(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Return the next token of each sequence, int64 `[S]`, as its request asks, by logits fp32 `[S, V]`.

    No row depends on another, nor on the number of rows. Raise `UserError` if the largest logit of a row is not finite.
    A sequence whose request bans every token fails; its row has no meaning then.
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
    """Return the next tokens, int64 `[S]`, that the decoder has chosen: `StepOutputs` with one token a row, `[S, 1]`.

    A drawn token uses up a random number of its sequence here, too. Raise `UserError` if a logit is not finite.
    """
    require_numbers(logits.squeeze(1).tolist())
    for sequence in sequences:
        if sequence.request.sampling.draws:
            sequence.random.random()
    return token_ids.squeeze(1)


def draw(logits: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """Draw a token of each row of fp32 `[R, V]`, int64 `[R]`: the one of its softmax at which its number falls."""
    rows_at_once = max(1, SUMS_AT_ONCE // logits.shape[1])
    numbers = torch.tensor(uniforms, dtype=torch.float64).unsqueeze(1)
    parts = [slice(first, first + rows_at_once) for first in range(0, len(uniforms), rows_at_once)]
    return torch.cat([draw_rows(logits[part], numbers[part]) for part in parts])


def draw_rows(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Draw as `draw` does, on any device that has the logits and the numbers, fp64 `[R, 1]`."""
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))  # a product rounded up would fall behind the last one
    return torch.searchsorted(cumulative, torch.minimum(numbers * total, below_total), right=True).squeeze(1)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """Return the position of the largest logit of each row of fp32 `[S, V]`, int64 `[S]`; of equal ones the first.

    Raise `UserError` if a row has a NaN, or if its largest logit is infinite. The maximum of a row with a NaN is NaN:
    `S` numbers are enough to find one.
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
    """Return the error of a request that bans every token."""
    problem = f"has no token left to choose after {len(sequence.output_ids)} new ones; relax "
    return RequestFailed(sequence.index, problem + ", ".join(sequence.request.sampling.processors))


def _way(sequence: TokenSequence) -> Way:
    if not CHANGES.keys().isdisjoint(sequence.request.sampling.processors):
        return _choose_changed
    return _draw_by_chance if sequence.request.sampling.draws else _choose_largest


def _choose_largest(logits: torch.Tensor, _: Sequence[TokenSequence]) -> torch.Tensor:
    return greedy(logits)


def _choose_changed(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Choose for sequences whose requests change logits."""
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
    """Draw one of the tokens that the filters keep: from the largest logits of a row if these suffice, else from all.

    Which of the two it is depends on the row alone.
    """
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
    """Return some rows of `[R, V]`, which are copied unless they are all."""
    return logits if len(rows) == logits.shape[0] else logits.index_select(0, torch.tensor(rows))


def largest(rows: torch.Tensor) -> tuple[list[float], torch.Tensor]:
    """Return the largest number (NaN if there is one) of each row of fp32 `[S, V]` and its first place, int64 `[S]`."""
    numbers = rows.numpy()  # shares memory; numpy's argmax uses vector instructions, ATen's on CPUs does not
    where = numbers.argmax(-1)
    return [row.item(place) for row, place in zip(numbers, where.tolist(), strict=True)], torch.from_numpy(where)


def largest_there(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `largest` does, as tensors on the device of the rows.

    On a GPU this does not wait for them, because a step may be being captured.
    """
    if rows.device.type != "cpu":
        best, places = rows.max(-1)
        return best, places
    numbers, places = largest(rows)
    return torch.tensor(numbers), places
