"""Record the log-probability of each new token, before penalties, temperature and filters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opt_trt.runtime.request import TokenLogProbs
from opt_trt.runtime.sequence import TokenSequence


def record(logits: torch.Tensor, token_ids: torch.Tensor, sequences: Sequence[TokenSequence]) -> None:
    """Append log-probabilities to each sequence that asks for them: of its new token and of the most likely ones.

    `logits` are fp32 `[S, V]`, `token_ids` are the new tokens, int64 `[S]`.
    """
    given = (pair for pair in enumerate(sequences) if pair[1].error is None)  # others have no new token
    asked = [(row, s) for row, s in given if s.request.sampling.log_probs is not None]
    if not asked:
        return
    rows = torch.tensor([row for row, _ in asked])
    scores = logits[rows].log_softmax(-1)
    chosen = scores.gather(1, token_ids[rows].unsqueeze(1)).squeeze(1).tolist()
    counts = [min(s.request.sampling.log_probs or 0, logits.shape[1]) for _, s in asked]
    top = scores.topk(max(counts))
    best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    for (_, sequence), log_prob, (ids, values), count in zip(asked, chosen, best, counts, strict=True):
        sequence.log_probs.append(TokenLogProbs(log_prob, tuple(zip(ids[:count], values[:count], strict=True))))
