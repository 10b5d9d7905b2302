"""One sequence of a call: its tokens that the runner has delivered and that are still to be handed out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from opt_trt.backends.trtllm.runner_outputs import Outputs
from opt_trt.runtime.generate import event_of
from opt_trt.runtime.request import RequestFailed, TokenLogProbs
from opt_trt.runtime.sequence import Hypothesis, TokenSequence


@dataclass(eq=False)
class CallSequence:
    """A sequence whose output is at `row` and `column` of the runner's output."""

    sequence: TokenSequence
    row: int
    column: int
    num_taken: int = 0  # tokens taken from the runner
    has_ended: bool = False  # no more tokens will come
    arrived: deque[int] = field(default_factory=deque)
    log_probs: deque[float] = field(default_factory=deque)

    @property
    def is_due(self) -> bool:
        """True if the sequence can advance: it has a token, or has ended."""
        return bool(self.arrived) or self.has_ended

    def take(self, outputs: Outputs) -> None:
        """Take the new tokens of the runner's output."""
        if self.sequence.request.sampling.num_beams > 1:
            return
        ids = outputs.new_ids(self.row, self.column, len(self.sequence.request.prompt_ids))
        self.arrived += ids[self.num_taken :]
        self.num_taken = len(ids)

    def finish(self, outputs: Outputs) -> None:
        """Take what comes with the complete output."""
        sequence, request = self.sequence, self.sequence.request
        self.has_ended = True
        if request.return_context_logits:
            sequence.context_logits = [outputs.context_logits(self.row)]
        if request.sampling.num_beams > 1:
            self._rank(outputs)
            return
        if request.return_generation_logits:
            sequence.generation_logits = list(outputs.generation_logits(self.row, self.column))
        if request.sampling.log_probs is not None:
            self.log_probs += outputs.log_probs(self.row, self.column, self.num_taken)

    def advance(self) -> None:
        """Give the sequence its next token. After the runner's last token, this is the end id, which it leaves out."""
        sequence, request = self.sequence, self.sequence.request
        if sequence.hypotheses:
            sequence.finish_reason = sequence.hypotheses[0].sequence.finish_reason
            return
        if not self.arrived and request.end_id is None:
            sequence.fail(RequestFailed(sequence.index, f"got {len(sequence.output_ids)} tokens and no reason to end"))
            return
        sequence.accept(self.arrived.popleft() if self.arrived else int(request.end_id or 0))
        if self.log_probs:
            sequence.log_probs.append(TokenLogProbs(self.log_probs.popleft()))
        if sequence.finish_reason is not None:
            del sequence.generation_logits[len(sequence.output_ids) :]
        if sequence.events is not None:
            sequence.events.append(event_of(sequence))

    def _rank(self, outputs: Outputs) -> None:
        """Make the beams finished outputs, in the runner's order, which is best first."""
        sampling = self.sequence.request.sampling
        found = []
        for beam in range(sampling.num_beams):
            ids = outputs.new_ids(self.row, beam, len(self.sequence.request.prompt_ids))
            one = CallSequence(self.sequence.fork(), self.row, beam, len(ids), True, deque(ids))
            if sampling.log_probs is not None:
                one.log_probs += outputs.log_probs(self.row, beam, len(ids))
            while one.sequence.finish_reason is None:
                one.advance()
            length = len(one.sequence.output_ids)
            score = outputs.cum_log_prob(self.row, beam) / length**sampling.length_penalty
            found.append(Hypothesis(one.sequence, score))
        self.sequence.hypotheses = found
