"""The tokens a draw is about: top-k, top-p and min-p, looked for among the largest logits of a row.

They mostly keep a few tokens. To compare, sum and sort all logits for them took 14 ms at 16 rows of 50,272, a quarter
of a step of OPT-125M; to look for the few takes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch

from opt_trt.runtime.processors import FILTERS, parameter, process, top_k_of
from opt_trt.runtime.sequence import TokenSequence

FEW, WIDE = 64, 64  # candidates, and logits of a window: settles most rows with top-k, and peaked ones
MANY, NARROW = 1024, 8
MARGIN = 1e-5  # of probability, or of a logit: fp32 sums over a vocabulary differ by some 1e-6


@dataclass(frozen=True)
class Candidates:
    """What the filters keep of some rows: the other logits are -inf. Ids are in ascending order."""

    logits: torch.Tensor  # fp32 [R, C]
    token_ids: torch.Tensor  # int64 [R, C]
    settled: torch.Tensor  # bool [R]; False where rounding decides, or where tokens beyond the candidates are kept


def find_few(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> Candidates:
    """Filter the 64 largest logits of each row of fp32 `[R, V]` as its sequence asks; no row depends on another."""
    return _find(logits, sequences, *_largest(logits, FEW, WIDE))


def find_many(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> Candidates:
    """The same among the 1,024 largest."""
    return _find(logits, sequences, *_largest(logits, MANY, NARROW))


def find_all(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> Candidates:
    """What the filters keep of whole rows, with transformers' operations: settled, whatever the rounding."""
    token_ids = torch.arange(logits.shape[1]).expand_as(logits)
    return Candidates(process(logits.clone(), sequences, FILTERS), token_ids, torch.ones(len(logits), dtype=torch.bool))


def _find(
    logits: torch.Tensor, sequences: Sequence[TokenSequence], best: torch.Tensor, token_ids: torch.Tensor
) -> Candidates:
    kept, settled = _keep_top_k(best, sequences)
    log_total, unlimited = kept.logsumexp(-1, True), top_k_of(sequences) == 0
    if unlimited.any():  # their probabilities are shares of all tokens
        log_total = torch.where(unlimited, _log_total(logits, best), log_total)
    kept, clear = _keep_top_p(kept, log_total, sequences)
    settled &= clear
    if any(s.request.sampling.min_p for s in sequences):
        kept, clear = _keep_min_p(kept, sequences)
        settled &= clear
    settled &= kept[:, -1:] == -inf  # no logit left out is larger than the last candidate
    token_ids, order = token_ids.sort()
    return Candidates(kept.gather(1, order), token_ids, settled.squeeze(1))


def _largest(logits: torch.Tensor, number: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`logits.topk(number)`, twice as fast: these are in the `number` windows with the largest maxima."""
    windows = logits.shape[1] // width
    if windows <= number:
        return logits.topk(min(number, logits.shape[1]))
    start = logits[:, : windows * width].view(-1, windows, width).amax(-1).topk(number).indices * width
    inside = (start.unsqueeze(2) + torch.arange(width)).flatten(1)
    rest = torch.arange(windows * width, logits.shape[1]).expand(len(logits), -1)
    token_ids = torch.cat((inside, rest), dim=1)
    best, places = logits.gather(1, token_ids).topk(number)
    return best, token_ids.gather(1, places)


def _log_total(logits: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """`logits.logsumexp(-1)`, from the largest probability: five times faster."""
    return best[:, :1] - logits.softmax(-1).amax(-1, keepdim=True).log()


def _keep_top_k(best: torch.Tensor, sequences: Sequence[TokenSequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `top_k` of fp32 `[R, C]`, largest first, and what equals the last of them."""
    top_k = top_k_of(sequences)
    least = best.gather(1, top_k.clamp(1, best.shape[1]) - 1)
    clear = (top_k == 0) | (best[:, -1:] < least)  # else more of them may equal the last one kept
    return torch.where((best >= least) | (top_k == 0), best, -inf), clear


def _keep_top_p(
    best: torch.Tensor, log_total: torch.Tensor, sequences: Sequence[TokenSequence]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest that hold `top_p` of the probability."""
    top_p = parameter("top_p", sequences)
    mass = (best - log_total).double().exp()
    before = mass.cumsum(-1) - mass  # of the probability, more probable than each
    count = (before < top_p).sum(-1, keepdim=True).clamp(min=1)
    least, next_one = best.gather(1, count - 1), best.gather(1, count.clamp(max=best.shape[1] - 1))
    clear = ((before - top_p).abs() > MARGIN).all(-1, keepdim=True) & (least > next_one)
    keeps_all = (top_p == 0) | (top_p == 1)
    return torch.where((best >= least) | keeps_all, best, -inf), clear | keeps_all


def _keep_min_p(best: torch.Tensor, sequences: Sequence[TokenSequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Those at least `min_p` times as probable as the first."""
    min_p = parameter("min_p", sequences)
    least = best[:, :1] + min_p.log()
    clear = ((best - least).abs() > MARGIN).all(-1, keepdim=True)
    return torch.where(best >= least, best, -inf), clear | (min_p == 0)
