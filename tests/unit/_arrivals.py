"""Requests that arrive, are cancelled and advance in any order, over any session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from opt_trt.config.scheduling import POLICIES, Scheduling
from opt_trt.runtime.in_flight import stream
from opt_trt.runtime.request import Request
from opt_trt.runtime.session import DecoderSession
from opt_trt.runtime.token_stream import TokenStream

REQUESTS = st.lists(
    st.builds(
        Request,
        st.lists(st.integers(0, 15), min_size=1, max_size=16).map(tuple),
        st.integers(1, 8),
        st.sampled_from([None, 0, 2]),
    ),
    max_size=12,
)
RULES = st.builds(Scheduling, st.sampled_from(POLICIES), st.integers(1, 9), st.booleans())


def require_expected_outputs(
    of: DecoderSession, requests: Sequence[Request], expected: Callable[[Request], tuple[int, ...]], data: st.DataObject
) -> None:
    """Stream each request by itself; check that only a cancellation changes an output, and that no block is kept."""
    streams: dict[int, TokenStream] = {}
    outputs: list[list[int]] = [[] for _ in requests]
    arriving, cancelled = list(range(len(requests))), set()
    while arriving or streams:
        if arriving and (not streams or data.draw(st.booleans())):
            newcomer = arriving.pop(0)
            streams[newcomer] = stream(of, [requests[newcomer]])
        number = data.draw(st.sampled_from(sorted(streams)))
        if data.draw(st.integers(0, 9)) == 9:
            streams[number].cancel(0)
            cancelled.add(number)
        event = next(streams[number], None)
        if event is None:
            del streams[number]
        else:
            outputs[number].append(event.token_id)
    for number, request in enumerate(requests):
        whole = expected(request)
        assert tuple(outputs[number]) == (whole[: len(outputs[number])] if number in cancelled else whole)
    assert of._pool.num_free == of._pool.num_blocks
