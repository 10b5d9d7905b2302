"""Tokens drawn by chance where the logits are: no shape and no wait depends on them, so a captured step may hold it."""

from __future__ import annotations

import torch

from opt_trt.runtime.sampling.choose import draw_rows

ROWS_AT_ONCE = 64  # some 130 MB of OPT's vocabulary while they are sorted and summed


def drawn(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """A token of each row of fp32 `[L, V]` as its row of `StepInputs.draws` says: int64 `[L]`.

    The one the session would draw of whole logits, where neither rounding nor a tie at the edge of `top_p` decides. Of
    a row with a NaN it is any.
    """
    parts = [slice(first, first + ROWS_AT_ONCE) for first in range(0, len(logits), ROWS_AT_ONCE)]
    token_ids = [draw_rows(filtered(logits[part], draws[part]), draws[part, 4:5]) for part in parts]
    return torch.cat(token_ids).clamp(max=logits.shape[1] - 1)


def filtered(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """`logits / temperature`, -inf where a filter leaves a token out: those of `processors.FILTERS`, in one sort."""
    temperature, top_k, top_p, min_p = (column.unsqueeze(1) for column in draws[:, :4].unbind(1))
    vocab_size = logits.shape[1]
    logits = logits / temperature.float()
    ascending, token_ids = logits.sort()
    count = top_k.masked_fill(top_k == 0, vocab_size).clamp(max=vocab_size).long()
    least = ascending.gather(1, vocab_size - count)
    probabilities = ascending.masked_fill(ascending < least, -torch.inf).softmax(-1)
    drop = probabilities.cumsum(-1) <= (1 - top_p).float()
    drop |= probabilities < min_p.float() * probabilities[:, -1:]
    drop[:, -1].fill_(False)  # an assignment would make the number a tensor first
    return logits.masked_fill(drop.scatter(1, token_ids, drop), -torch.inf)
