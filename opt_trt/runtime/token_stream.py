"""The tokens of some requests in flight as they come, and the means to cancel these requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from opt_trt.errors import UserError, spelled
from opt_trt.runtime.request import Request, RequestFailed, TokenEvent
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import InFlight


class TokenStream(Iterator[TokenEvent]):
    """An iterator over tokens. Each step serves all streams of the session, whichever stream runs it.

    Unfinished requests are cancelled when the stream is closed or no longer referenced. `UserError` for beams.
    """

    def __init__(self, in_flight: InFlight, requests: Sequence[Request]) -> None:
        self._in_flight = in_flight
        self._events: deque[TokenEvent] = deque()
        self._open: list[TokenSequence] = []
        if any(request.sampling.num_beams > 1 for request in requests):
            raise UserError(
                "beams change until the last token: they cannot be streamed; "
                f"drop {spelled('streaming')} or {spelled('num_beams')}"
            )
        self._open = [
            TokenSequence(index, request, self._events, is_watched=True) for index, request in enumerate(requests)
        ]
        for sequence in self._open:
            in_flight.submit(sequence)

    def __next__(self) -> TokenEvent:
        while not self._events and self._open:
            self._raise_error()
            self._in_flight.step()
        if not self._events:
            raise StopIteration
        event = self._events.popleft()
        if event.finish_reason is not None:
            self._open = [s for s in self._open if s.index != event.index]
        return event

    def cancel(self, index: int) -> None:
        """End the request at `index` of the list: it gives no more tokens, and its memory is free at once."""
        for sequence in self._open:
            if sequence.index == index:
                self._in_flight.cancel(sequence)
        self._open = [s for s in self._open if s.index != index]
        waiting = [event for event in self._events if event.index != index]
        self._events.clear()
        self._events.extend(waiting)

    def close(self) -> None:
        """Cancel all requests that are not finished."""
        for sequence in self._open:
            self._in_flight.cancel(sequence)
        self._open = []
        self._events.clear()

    def __del__(self) -> None:
        self.close()

    def _raise_error(self) -> None:
        """Fail all requests of the stream if one of them failed, whatever the cause."""
        error = next((s.error for s in self._open if s.error is not None), None)
        if error is None:
            return
        self.close()
        if isinstance(error, RequestFailed):
            raise error
        reason = error.text if isinstance(error, UserError) else str(error) or type(error).__name__
        raise UserError(f"a step shared with other requests of this session failed ({reason}); send it again")
