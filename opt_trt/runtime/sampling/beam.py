"""Beam search for one request, as in transformers: choose the beams that continue, keep finished ones, and stop."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opt_trt.runtime.sampling import log_probs
from opt_trt.runtime.sampling.choose import no_number, no_token_left
from opt_trt.runtime.sampling.processors import process
from opt_trt.runtime.sequence import Hypothesis, TokenSequence

IMPOSSIBLE = -1e9  # the score of a beam that must lose, as in transformers
WHEN_FULL, NEVER = 1, 2  # values of `early_stopping`; 0 is the heuristic in between


class BeamSearch:
    """The state of one request's search; `leader` is the sequence that computed its prompt.

    A candidate is a beam with one more token. Its score is the sum of its log-probabilities after penalties and bans.
    A step takes the best `2 * num_beams` candidates, or `num_beams` more for each end id but the first. Those that end
    are finished if they are among the best `num_beams`. Of the others, the best `num_beams` continue. Candidates are
    ranked by score + `beam_search_diversity_rate` * (place of the beam they extend, 0 for the best), as in
    TensorRT-LLM. The second term does not become part of the score.
    """

    def __init__(self, leader: TokenSequence) -> None:
        self._sampling = leader.request.sampling
        self._leader = leader
        self._scores = torch.full((self._sampling.num_beams, 1), IMPOSSIBLE)  # the scores of the beams that continue
        self._scores[0] = 0.0  # all beams are equal at first: the first one stands for them
        self.finished: list[Hypothesis] = []  # best first

    def advance(self, logits: torch.Tensor, beams: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Return the beams of the next step, by logits fp32 `[num_beams, V]` (`[1, V]` after the prompt).

        Their `blocks` and `num_cached` are those of the beam they extend, whose keys and values they share. The leader
        gets a finish reason when the search is over, or fails: every token is banned or the best score is no number.
        """
        width = self._sampling.num_beams
        if len(beams) == 1:
            logits, beams = logits.expand(width, -1), [*beams] * width
        scores, parents, token_ids = self._best(logits, beams)
        if scores[0] == -torch.inf:
            self._leader.fail(no_token_left(beams[0]))
            return []
        if not scores[0].isfinite():
            self._leader.fail(no_number(self._leader, scores[0].item()))
            return []
        candidates = [beams[parent].fork() for parent in parents]
        for candidate, token_id in zip(candidates, token_ids, strict=True):
            candidate.accept(token_id)
        if self._sampling.log_probs is not None:
            log_probs.record(logits[parents], torch.tensor(token_ids), candidates)
        self._keep_finished(candidates[:width], scores[:width])
        continuing = [row for row, candidate in enumerate(candidates) if candidate.finish_reason is None][:width]
        if not continuing or self._is_over(scores[continuing[0]], len(candidates[0].output_ids)):
            self._leader.finish_reason = self.finished[0].sequence.finish_reason
            self._leader.hypotheses = self.finished
            return []
        self._scores = scores[continuing].unsqueeze(1)
        return [candidates[row] for row in continuing]

    def _best(self, logits: torch.Tensor, beams: Sequence[TokenSequence]) -> tuple[torch.Tensor, list[int], list[int]]:
        """Return the best candidates, best first.

        They are given as scores fp32 `[2 * num_beams]` or more, the beams they extend and their token ids.
        """
        vocab_size = logits.shape[1]
        scores = logits.log_softmax(-1)
        if self._sampling.processors:
            scores = process(scores, beams)
        scores = scores + self._scores
        ranks = scores
        if self._sampling.beam_search_diversity_rate:
            ranks = scores + self._sampling.beam_search_diversity_rate * torch.arange(len(beams)).unsqueeze(1)
        count = len(beams) * (1 + max(1, len(self._leader.request.end_ids)))
        places = ranks.flatten().topk(min(count, ranks.numel())).indices
        best = scores.flatten()[places]
        return best, (places // vocab_size).tolist(), (places % vocab_size).tolist()

    def _keep_finished(self, candidates: Sequence[TokenSequence], scores: torch.Tensor) -> None:
        """Add the candidates that ended to the finished ones, and keep the best of all."""
        normed = (scores / len(candidates[0].output_ids) ** self._sampling.length_penalty).tolist()
        self.finished += [Hypothesis(c, s) for c, s in zip(candidates, normed, strict=True) if c.finish_reason]
        self.finished = sorted(self.finished, key=lambda h: -h.score)[: self._sampling.num_beams]

    def _is_over(self, best: torch.Tensor, length: int) -> bool:
        """Return whether the search ends: `early_stopping` says so, or no beam can replace a finished one.

        `best` is the score of the best beam that continues.
        """
        if len(self.finished) < self._sampling.num_beams:
            return False
        if self._sampling.early_stopping == WHEN_FULL:
            return True
        longest = self._sampling.early_stopping == NEVER and self._sampling.length_penalty > 0
        length = self._leader.request.max_new_tokens if longest else length
        return float(best / length**self._sampling.length_penalty) <= self.finished[-1].score
