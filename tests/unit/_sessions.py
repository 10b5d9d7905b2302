"""A session with answers that a test makes up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.step import DecoderSpec

Answer = Callable[[Request], Result]


class AnsweredAtOnce:
    """An `InFlight` whose every step finishes all sequences: each becomes the answer to its request."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._waiting: list[TokenSequence] = []
        self.steps: list[list[Request]] = []

    def submit(self, sequence: TokenSequence) -> None:
        self._waiting.append(sequence)

    def cancel(self, sequence: TokenSequence) -> None:
        raise NotImplementedError

    def step(self) -> Sequence[TokenSequence]:
        stepped, self._waiting = self._waiting, []
        self.steps.append([sequence.request for sequence in stepped])
        for sequence in stepped:
            become(sequence, self._answer(sequence.request))
        return stepped


class AnsweringSession:
    """A `Session` that serves every request."""

    def __init__(self, spec: DecoderSpec, answer: Answer) -> None:
        self.spec = spec
        self.in_flight = AnsweredAtOnce(answer)

    def check(self, request: Request, index: int) -> None:
        pass

    def obey(self, message: memoryview) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def become(sequence: TokenSequence, result: Result) -> None:
    """Change a sequence so that this is its result."""
    sequence.output_ids, sequence.finish_reason = list(result.output_ids), result.finish_reason
    sequence.log_probs = list(result.log_probs)
    sequence.context_logits = [] if result.context_logits is None else [result.context_logits]
    sequence.generation_logits = (
        [] if result.generation_logits is None else list(torch.unbind(result.generation_logits))
    )
