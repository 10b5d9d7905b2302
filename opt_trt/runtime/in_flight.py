"""Answer requests of a session: with whole results, or with their tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence

from opt_trt.host.progress import Bar
from opt_trt.runtime.generate import result_of
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import Session
from opt_trt.runtime.token_stream import TokenStream

QUIET_SECONDS = 2  # a progress bar is shown only for what takes longer


def generate(session: Session, requests: Sequence[Request]) -> list[Result]:
    """Return one result per request, in their order; a progress bar counts them.

    All requests are checked before the first one runs (`UserError`).
    """
    _check(session, requests)
    sequences = [TokenSequence(index, request) for index, request in enumerate(requests)]
    unfinished = set(sequences)
    bar = Bar(total=len(requests), unit="request", disable=None, delay=QUIET_SECONDS, leave=False)
    try:
        for sequence in sequences:
            session.in_flight.submit(sequence)
        while unfinished:
            finished = [s for s in session.in_flight.step() if s.finish_reason and s in unfinished]
            unfinished -= set(finished)
            bar.update(len(finished))
            if error := next((s.error for s in finished if s.error is not None), None):
                raise error
    finally:
        for sequence in unfinished:
            session.in_flight.cancel(sequence)
        bar.close()
    return [result_of(sequence) for sequence in sequences]


def stream(session: Session, requests: Sequence[Request]) -> TokenStream:
    """Return the tokens of all requests as they come. The requests are checked here, not at the first token.

    Closing the stream, or cancelling one of its requests, frees their memory at once.
    """
    _check(session, requests)
    return TokenStream(session.in_flight, requests)


def _check(session: Session, requests: Sequence[Request]) -> None:
    for index, request in enumerate(requests):
        session.check(request, index)
