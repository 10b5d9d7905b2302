"""Draw tokens on the device of the logits. No shape and no wait depends on values, so that a step can be captured."""

from __future__ import annotations

import torch

from opt_trt.config.sampling import FILTERS
from opt_trt.runtime.sampling.choose import draw_rows, largest_there
from opt_trt.step import DRAW_COLUMNS

ROWS_AT_ONCE = 64  # sorting and summing them takes some 130 MB with OPT's vocabulary


def choice(logits: torch.Tensor, draws: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest logit of each row of fp32 `[L, V]`, and the token that `draws` choose, or its own without."""
    largest, token_ids = largest_there(logits)
    return largest, token_ids if draws is None else drawn(logits, draws)


def drawn(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Draw a token of each row of fp32 `[L, V]`, int64 `[L]`, as its row of `StepInputs.draws` says.

    It is the token that the session would draw from whole logits, unless rounding or a tie at the edge of `top_p`
    decides. For a row with a NaN it may be any token.
    """
    parts = [slice(first, first + ROWS_AT_ONCE) for first in range(0, len(logits), ROWS_AT_ONCE)]
    token_ids = [draw_rows(filtered(logits[part], draws[part]), draws[part, DRAW_COLUMNS.number]) for part in parts]
    return torch.cat(token_ids).clamp(max=logits.shape[1] - 1)


def filtered(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return `logits / temperature`, with -inf where one of `FILTERS` leaves a token out; they share one sort."""
    columns = (column.unsqueeze(1) for column in draws[:, DRAW_COLUMNS.filters].unbind(1))
    given = dict(zip(FILTERS, columns, strict=True))  # each fp64 [L, 1]
    vocab_size = logits.shape[1]
    logits = logits / given["temperature"].float()
    ascending, token_ids = logits.sort()
    count = given["top_k"].masked_fill(given["top_k"] == 0, vocab_size).clamp(max=vocab_size).long()
    least = ascending.gather(1, vocab_size - count)
    probabilities = ascending.masked_fill(ascending < least, -torch.inf).softmax(-1)
    drop = probabilities.cumsum(-1) <= (1 - given["top_p"]).float()
    drop |= probabilities < given["min_p"].float() * probabilities[:, -1:]
    drop[:, -1].fill_(False)  # an assignment would first make a tensor of the number
    return logits.masked_fill(drop.scatter(1, token_ids, drop), -torch.inf)
