"""Contrastive search for one request: of the most likely tokens, choose the one least like the tokens before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from opt_trt.runtime.sampling import log_probs
from opt_trt.runtime.sampling.choose import no_number, no_token_left
from opt_trt.runtime.sampling.processors import process
from opt_trt.runtime.sequence import TokenSequence


class ContrastiveSearch:
    """The state of one request's search; `leader` is the sequence that computed its prompt and gets its tokens.

    The `top_k` most likely tokens, after penalties and bans, are the candidates of a step. Each goes through the model
    in a row of its own. The next token is the candidate with the largest

        (1 - penalty_alpha) * its probability - penalty_alpha * the largest cosine of its hidden state and one before it

    and its logits give the next candidates. A token is therefore known one step later than without a search.
    """

    def __init__(self, leader: TokenSequence) -> None:
        self._leader = leader
        self._sampling = leader.request.sampling
        self._history = History(leader.request.max_tokens)
        self._logits = torch.empty(0)  # fp32 [V], of which the candidates are the largest
        self._gains = torch.empty(0)  # fp32 [K], the first term of their scores; -inf where banned

    def advance(self, logits: torch.Tensor, rows: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Return the candidates of the next step, by logits fp32 `[K, V]` (`[1, V]` after the prompt).

        They have the blocks of the row they continue. The leader gets its token, and a finish reason if that is the
        last one. It fails when every token is banned or the largest logit is no number.
        """
        hidden = torch.cat([part for row in rows for part in row.hidden])
        if rows[0] is self._leader:  # the prompt is computed; there is no token to choose yet
            best = 0
            self._history.append(hidden)
            self._leader.hidden.clear()
        else:
            best = self._best(hidden)
            self._history.append(hidden[best : best + 1])
            self._accept(rows[best].output_ids[-1])
        return [] if self._leader.finish_reason else self._candidates(logits[best], rows[best])

    def _best(self, hidden: torch.Tensor) -> int:
        """Return the candidate to take, by the hidden states of all, fp32 `[K, E]`."""
        penalties = self._sampling.penalty_alpha * self._history.likeness(hidden)
        return int((self._gains - penalties).argmax())

    def _accept(self, token_id: int) -> None:
        log_probs.record(self._logits.unsqueeze(0), torch.tensor([token_id]), [self._leader])
        self._leader.accept(token_id)
        if self._leader.request.return_generation_logits:
            self._leader.generation_logits.append(self._logits.clone())

    def _candidates(self, logits: torch.Tensor, row: TokenSequence) -> list[TokenSequence]:
        """Return `row` continued by each of the most likely tokens.

        Their number is always the same, so that banned tokens may be among them.
        """
        scores = process(logits.unsqueeze(0).clone(), [self._leader]).squeeze(0)
        top = scores.topk(min(self._sampling.top_k, len(scores)))
        if top.values[0] == -torch.inf:
            self._leader.fail(no_token_left(self._leader))
            return []
        if not top.values[0].isfinite():
            self._leader.fail(no_number(self._leader, top.values[0].item()))
            return []
        probabilities = scores.softmax(-1)[top.indices]
        self._logits = logits
        self._gains = ((1 - self._sampling.penalty_alpha) * probabilities).masked_fill(
            top.values == -torch.inf, -torch.inf
        )
        candidates = [row.fork() for _ in range(len(top.indices))]
        for candidate, token_id in zip(candidates, top.indices.tolist(), strict=True):
            candidate.output_ids.append(token_id)
        return candidates


class History:
    """The directions of the hidden states of a sequence's tokens.

    Memory: fp32 `[capacity, E]`, 6 MiB for 2,048 tokens of OPT-125M. It is reserved at once, and used as it is written.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._directions = torch.empty(0)
        self._length = 0

    def append(self, hidden: torch.Tensor) -> None:
        """Add the next tokens' hidden states `[M, E]`."""
        if not self._length:
            self._directions = torch.empty(self._capacity, hidden.shape[1])
        end = self._length + len(hidden)
        self._directions[self._length : end] = functional.normalize(hidden, dim=-1)
        self._length = end

    def likeness(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the largest cosine of each of `[K, E]` with any hidden state so far: `[K]`."""
        cosines = self._directions[: self._length] @ functional.normalize(hidden, dim=-1).T
        return cosines.amax(0)
