"""Choose the next token: the one with the largest logit, or one drawn by chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from opt_trt.errors import spelled
from opt_trt.runtime.request import RequestFailed
from opt_trt.runtime.sampling.candidates import draw_among_largest
from opt_trt.runtime.sampling.filters import FILTERS
from opt_trt.runtime.sampling.processors import CHANGES, process
from opt_trt.runtime.sequence import TokenSequence

SUMS_AT_ONCE = 2**17  # fp64 numbers that fit into the cache: 8 rows of 50,272 at once took 2.9 ms, not 0.4 ms
Way = Callable[[torch.Tensor, Sequence[TokenSequence]], torch.Tensor]


def choose(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Return the next token of each sequence, int64 `[S]`, as its request asks, by logits fp32 `[S, V]`.

    No row depends on another, nor on the number of rows. A sequence fails if its largest logit is not finite, or if its
    request bans every token; its row has no meaning then. No random number is used up: see `use_number`.
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

    A sequence fails if its logit is not finite.
    """
    fail_without_number(sequences, logits.squeeze(1).tolist())
    return token_ids.squeeze(1)


def use_number(sequence: TokenSequence) -> None:
    """Use up the random number by which the newest token of a sequence was drawn, if it was."""
    if sequence.request.sampling.draws:
        sequence.random.random()


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


def fail_without_number(sequences: Sequence[TokenSequence], largest: Sequence[float]) -> None:
    """Fail each sequence whose largest logit is NaN or infinite; a row with a NaN has a NaN as its largest logit."""
    for sequence, value in zip(sequences, largest, strict=True):
        if not math.isfinite(value):
            sequence.fail(no_number(sequence, value))


def no_number(sequence: TokenSequence, value: float) -> RequestFailed:
    """Return the error of a request whose largest logit or score is not finite."""
    return RequestFailed(
        sequence.index,
        f"failed: expected finite logits, the decoder returned {value}: its weights hold NaN or infinity, or overflow "
        f"their type; check the source checkpoint, or convert it with {spelled('dtype')} float32 and build again",
    )


def no_token_left(sequence: TokenSequence) -> RequestFailed:
    """Return the error of a request that bans every token."""
    problem = f"has no token left to choose after {len(sequence.output_ids)} new ones; relax "
    return RequestFailed(sequence.index, problem + ", ".join(sequence.request.sampling.processors))


def _way(sequence: TokenSequence) -> Way:
    if not CHANGES.keys().isdisjoint(sequence.request.sampling.processors):
        return _choose_changed
    return _draw_by_chance if sequence.request.sampling.draws else _choose_largest


def _choose_largest(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Return the position of the largest logit of each row, of equal ones the first."""
    best, token_ids = largest(logits)
    fail_without_number(sequences, best)
    return token_ids


def _choose_changed(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Choose for sequences whose requests change logits."""
    fail_without_number(sequences, largest(logits)[0])
    changed = process(logits.clone(), sequences, CHANGES)
    best, token_ids = largest(changed)
    for sequence, value in zip(sequences, best, strict=True):
        if sequence.error is None and not math.isfinite(value):
            sequence.fail(no_token_left(sequence))
    drawn = [row for row, s in enumerate(sequences) if s.request.sampling.draws and s.error is None]
    if drawn:
        token_ids[drawn] = _draw_by_chance(_take(changed, drawn), [sequences[row] for row in drawn])
    return token_ids


def _draw_by_chance(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Draw one of the tokens that the filters keep: from the largest logits of a row if these suffice, else from all.

    Which of the two it is depends on the row alone.
    """
    uniforms = [s.random.coming(1)[0] for s in sequences]
    found = draw_among_largest(logits, sequences, uniforms)
    left = [row for row, token_id in enumerate(found) if token_id is None]
    token_ids = torch.tensor([token_id or 0 for token_id in found])
    if left:
        fail_without_number([sequences[row] for row in left], _take(logits, left).amax(-1).tolist())
        left = [row for row in left if sequences[row].error is None]
    if left:
        kept = process(_take(logits, left).clone(), [sequences[row] for row in left], FILTERS)
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
