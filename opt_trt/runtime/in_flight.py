"""Answer requests of a session: with whole results, or with their tokens as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    results = dict(finished(session, requests))
    return [results[index] for index in range(len(requests))]


def finished(session: Session, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
    """Yield each result when it is there, with the index of its request; nothing of it is kept here. See `generate`."""
    _check(session, requests)
    unfinished: set[TokenSequence] = set()
    bar = Bar(total=len(requests), unit="request", disable=None, delay=QUIET_SECONDS, leave=False)
    try:
        _submit(session, requests, unfinished)
        while unfinished:
            ended = [s for s in session.in_flight.step() if s.finish_reason and s in unfinished]
            unfinished.difference_update(ended)
            bar.update(len(ended))
            if error := next((s.error for s in ended if s.error is not None), None):
                raise error
            while ended:
                yield _answer(ended.pop())  # no name here may refer to it: logits are large
    finally:
        for sequence in unfinished:
            session.in_flight.cancel(sequence)
        bar.close()


def _submit(session: Session, requests: Sequence[Request], unfinished: set[TokenSequence]) -> None:
    """Queue a sequence for each request, and add it to `unfinished`."""
    for index, request in enumerate(requests):
        sequence = TokenSequence(index, request)
        unfinished.add(sequence)
        session.in_flight.submit(sequence)


def _answer(sequence: TokenSequence) -> tuple[int, Result]:
    return sequence.index, result_of(sequence)


def stream(session: Session, requests: Sequence[Request]) -> TokenStream:
    """Return the tokens of all requests as they come. The requests are checked here, not at the first token.

    Closing the stream, or cancelling one of its requests, frees their memory at once.
    """
    _check(session, requests)
    return TokenStream(session.in_flight, requests)


def _check(session: Session, requests: Sequence[Request]) -> None:
    for index, request in enumerate(requests):
        session.check(request, index)
