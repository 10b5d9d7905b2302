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
    counts = [s.request.sampling.log_probs or 0 for _, s in asked]
    for (_, sequence), found in zip(asked, explain(logits[rows], token_ids[rows], counts), strict=True):
        sequence.log_probs.append(found)


def record_prompt(sequence: TokenSequence, start: int) -> None:
    """Append log-probabilities of a prompt's tokens, if asked for, and drop the logits that tell them.

    The newest context logits of the sequence, fp32 `[n, V]`, are those of its tokens from `start` on. A row tells the
    token behind its own.
    """
    count = sequence.request.sampling.prompt_log_probs
    if count is None:
        return
    logits = sequence.context_logits.pop()
    behind = torch.tensor(sequence.request.prompt_ids[start + 1 : start + 1 + len(logits)], dtype=torch.int64)
    sequence.prompt_log_probs += explain(logits[: len(behind)], behind, [count] * len(behind))


def explain(logits: torch.Tensor, token_ids: torch.Tensor, counts: Sequence[int]) -> list[TokenLogProbs]:
    """Return the log-probabilities of a token of each row of fp32 `[R, V]`, int64 `[R]`, and of the most likely ones.

    `counts` says for each row how many of these.
    """
    if not counts:
        return []
    scores = logits.log_softmax(-1)
    chosen = scores.gather(1, token_ids.unsqueeze(1))
    ranks = (scores > chosen).sum(-1) + 1
    top = scores.topk(min(max(counts), logits.shape[1]))
    best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    rows = zip(chosen.squeeze(1).tolist(), ranks.tolist(), best, counts, strict=True)
    return [
        TokenLogProbs(log_prob, tuple(zip(ids[:count], values[:count], strict=True)), rank)
        for log_prob, rank, (ids, values), count in rows
    ]
