"""Requests in flight, whatever computes them: the contract of a session's inner half, and whole answers over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from opt_trt.host.progress import Bar
from opt_trt.runtime.generate import result_of
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.sequence import TokenSequence

QUIET_SECONDS = 2  # a progress bar is shown only for what takes longer


class InFlight(Protocol):
    """All that is in flight; checked requests may join and leave between any two steps."""

    def submit(self, sequence: TokenSequence) -> None:
        """Queue a sequence whose request passed the session's `check`."""
        ...

    def cancel(self, sequence: TokenSequence) -> None:
        """Drop a sequence, finished or not, submitted or not."""
        ...

    def step(self) -> Sequence[TokenSequence]:
        """Every sequence returned has one more token, the last one if there is a finish reason, or failed.

        (Of beams there is nothing until the last one.)
        What no request is to blame for fails all sequences in flight, and is raised.
        """
        ...


def check_all(requests: Sequence[Request], check: Callable[[Request, int], None]) -> None:
    """`check` each request with its index, before the first of them runs."""
    for index, request in enumerate(requests):
        check(request, index)


def generate_all(in_flight: InFlight, requests: Sequence[Request]) -> list[Result]:
    """One result per checked request, in their order; a progress bar counts them."""
    sequences = [TokenSequence(index, request) for index, request in enumerate(requests)]
    unfinished = set(sequences)
    bar = Bar(total=len(requests), unit="request", disable=None, delay=QUIET_SECONDS, leave=False)
    try:
        for sequence in sequences:
            in_flight.submit(sequence)
        while unfinished:
            finished = [s for s in in_flight.step() if s.finish_reason and s in unfinished]
            unfinished -= set(finished)
            bar.update(len(finished))
            if error := next((s.error for s in finished if s.error is not None), None):
                raise error
    finally:
        for sequence in unfinished:
            in_flight.cancel(sequence)
        bar.close()
    return [result_of(sequence) for sequence in sequences]
