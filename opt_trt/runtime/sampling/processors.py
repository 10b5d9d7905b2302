"""Change logits before the next token is chosen: penalties and bans, as transformers defines them, then filters.

Every function takes fp32 logits `[R, V]`, which it may overwrite, and returns the new ones. Row `r` belongs to
`sequences[r]`. The requests of all rows ask for what the function does. No row depends on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import inf

import torch

from opt_trt.runtime.sampling.filters import FILTERS, Table, parameter
from opt_trt.runtime.sequence import TokenSequence


def process(logits: torch.Tensor, sequences: Sequence[TokenSequence], table: Table | None = None) -> torch.Tensor:
    """Apply to each row of `logits [R, V]` the processors of a table that its request asks for; by default of all.

    The logits are overwritten.
    """
    for name, apply in (PROCESSORS if table is None else table).items():
        rows = [row for row, sequence in enumerate(sequences) if name in sequence.request.sampling.processors]
        if not rows:
            continue
        if len(rows) == len(sequences):
            logits = apply(logits, sequences)
        else:
            logits[rows] = apply(logits[rows], [sequences[row] for row in rows])
    return logits


def _add_bias(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    rows, ids = _indices([[i for i, _ in s.request.sampling.logit_bias] for s in sequences])
    biases = torch.tensor([bias for s in sequences for _, bias in s.request.sampling.logit_bias], dtype=torch.float32)
    return logits.index_put_((rows, ids), biases, accumulate=True)


def _penalize_repetition(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    rows, ids = _indices([_history(s) for s in sequences])
    penalty = parameter("repetition_penalty", sequences)[rows, 0]
    seen = logits[rows, ids]
    return logits.index_put_((rows, ids), torch.where(seen < 0, seen * penalty, seen / penalty))


def _penalize_presence(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    rows, ids = _indices([s.output_ids for s in sequences])
    return logits.index_put_((rows, ids), logits[rows, ids] - parameter("presence_penalty", sequences)[rows, 0])


def _penalize_frequency(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    rows, ids = _indices([s.output_ids for s in sequences])
    counts = torch.zeros_like(logits).index_put_((rows, ids), torch.ones(len(ids)), accumulate=True)[rows, ids]
    penalty = parameter("frequency_penalty", sequences)[rows, 0] * counts
    return logits.index_put_((rows, ids), logits[rows, ids] - penalty)


def _ban_repeated_ngrams(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    return _ban(logits, [_ngram_ends(_history(s), s.request.sampling.no_repeat_ngram_size) for s in sequences])


def _ban_words(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    return _ban(logits, [_word_ends(_history(s), s.request.sampling.bad_words) for s in sequences])


def _keep_allowed(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    at = _indices([s.request.sampling.allowed_ids for s in sequences])
    return torch.full_like(logits, -inf).index_put_(at, logits[at])


def _ban_early_end(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    return _ban(logits, [_early_end(s) for s in sequences])


def _history(sequence: TokenSequence) -> list[int]:
    return [*sequence.request.prompt_ids, *sequence.output_ids]


def _indices(ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and the columns of the ids listed for each row: int64 `[N]`, `[N]`."""
    rows = torch.repeat_interleave(torch.tensor([len(row) for row in ids]))
    return rows, torch.tensor(list(chain.from_iterable(ids)), dtype=torch.int64)


def _ban(logits: torch.Tensor, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    return logits.index_put_(_indices(ids), torch.tensor(-inf))


def _ngram_ends(history: list[int], size: int) -> list[int]:
    """Return the tokens that followed the last `size - 1` tokens wherever these stood before."""
    if len(history) < size:
        return []
    ids = torch.tensor(history)
    windows = ids.unfold(0, size, 1)
    return windows[(windows[:, :-1] == ids[len(history) + 1 - size :]).all(-1), -1].tolist()


def _word_ends(history: list[int], words: Sequence[tuple[int, ...]]) -> list[int]:
    """Return the last id of each word whose other ids end the history."""
    return [word[-1] for word in words if tuple(history[max(0, len(history) + 1 - len(word)) :]) == word[:-1]]


def _early_end(sequence: TokenSequence) -> list[int]:
    return [] if len(sequence.output_ids) >= sequence.request.sampling.min_length else [*sequence.request.end_ids]


# In the order of application.
CHANGES: Table = {
    "logit_bias": _add_bias,
    "repetition_penalty": _penalize_repetition,
    "presence_penalty": _penalize_presence,
    "frequency_penalty": _penalize_frequency,
    "no_repeat_ngram_size": _ban_repeated_ngrams,
    "bad_words": _ban_words,
    "allowed_ids": _keep_allowed,
    "min_length": _ban_early_end,
}
PROCESSORS: Table = {**CHANGES, **FILTERS}
