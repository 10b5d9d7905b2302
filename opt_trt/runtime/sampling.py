"""Which token comes next: the largest logit, or one drawn by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from opt_trt.errors import UserError
from opt_trt.runtime.candidates import find_all, find_few, find_many
from opt_trt.runtime.largest import largest
from opt_trt.runtime.processors import CHANGES, FILTERS, process
from opt_trt.runtime.request import RequestFailed
from opt_trt.runtime.sequence import TokenSequence

SUMS_AT_ONCE = 2**17  # fp64 numbers that stay in the cache: 8 rows of 50,272 at once took 2.9 instead of 0.4 ms


def choose(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """The next token of each sequence as its request asks, from fp32 `[S, V]`: int64 `[S]`.

    No row depends on another, nor on how many there are. `UserError` if a row has no finite largest logit. A sequence
    whose request bans every token fails; its row means nothing.
    """
    token_ids = greedy(logits)
    rows = [row for row, s in enumerate(sequences) if s.request.sampling.draws or s.request.sampling.processors]
    if rows:
        token_ids[rows] = _choose_processed(_take(logits, rows), [sequences[row] for row in rows])
    return token_ids


def draw(logits: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """A token of each row of fp32 `[R, V]` by its softmax, found where a number from `[0, 1)` falls: int64 `[R]`."""
    rows_at_once = max(1, SUMS_AT_ONCE // logits.shape[1])
    numbers = torch.tensor(uniforms, dtype=torch.float64).unsqueeze(1)
    parts = [slice(first, first + rows_at_once) for first in range(0, len(uniforms), rows_at_once)]
    return torch.cat([_draw(logits[part], numbers[part]) for part in parts])


def _draw(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
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
    require_numbers(best.tolist())
    return token_ids


def require_numbers(largest: Sequence[float]) -> None:
    """Raise `UserError` if a row's largest logit is NaN or infinite."""
    bad = [value for value in largest if not math.isfinite(value)]
    if bad:
        raise UserError(
            f"expected finite logits, the decoder returned {bad[0]}: its weights hold NaN or infinity, or overflow "
            "their type; check the source checkpoint, or convert it with --dtype float32 and build again"
        )


def no_token_left(sequence: TokenSequence) -> RequestFailed:
    """What a request that bans every token fails by."""
    problem = f"has no token left to choose after {len(sequence.output_ids)} new ones; relax "
    return RequestFailed(sequence.index, problem + ", ".join(sequence.request.sampling.processors))


def _choose_processed(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """The same for sequences that ask for more than the largest logit."""
    changed, token_ids = logits, torch.zeros(len(logits), dtype=torch.int64)  # without changes, all are drawn
    if not all(CHANGES.keys().isdisjoint(s.request.sampling.processors) for s in sequences):
        changed = process(logits.clone(), sequences, CHANGES)  # megabytes, whose pages cost more than most changes
        best, token_ids = largest(changed)
        for sequence, value in zip(sequences, best.tolist(), strict=True):
            if not math.isfinite(value):
                sequence.fail(no_token_left(sequence))
    drawn = [row for row, s in enumerate(sequences) if s.request.sampling.draws and s.error is None]
    for draw_rows, is_filtered in ((_draw_filtered, True), (_draw_any, False)):
        rows = [row for row in drawn if _filters(sequences[row]) == is_filtered]
        if rows:
            token_ids[rows] = draw_rows(_take(changed, rows), [sequences[row] for row in rows])
    return token_ids


def _filters(sequence: TokenSequence) -> bool:
    return not FILTERS.keys().isdisjoint(sequence.request.sampling.processors)


def _draw_any(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    return draw(logits, [s.random.random() for s in sequences])


def _draw_filtered(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """A token of those that the filters keep: among few candidates, among many, or in all of a row.

    Which of the three is a matter of the row alone, and so is its token.
    """
    uniforms = [s.random.random() for s in sequences]
    token_ids = torch.empty(len(sequences), dtype=torch.int64)
    left = [*range(len(sequences))]
    for find in (find_few, find_many, find_all):
        found = find(_take(logits, left), [sequences[row] for row in left])
        places = draw(found.logits, [uniforms[row] for row in left])
        token_ids[left] = found.token_ids.gather(1, places.unsqueeze(1)).squeeze(1)
        left = [row for row, settled in zip(left, found.settled.tolist(), strict=True) if not settled]
        if not left:
            break
    return token_ids


def _take(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some rows of `[R, V]`: a copy, unless they are all."""
    return logits if len(rows) == len(logits) else logits.index_select(0, torch.tensor(rows))
