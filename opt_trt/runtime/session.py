"""A live engine: it accepts requests and answers with results or with tokens as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from opt_trt.progress import Bar
from opt_trt.runtime import kv_cache
from opt_trt.runtime.block_pool import BlockPool
from opt_trt.runtime.generate import Generation, event_of, result_of
from opt_trt.runtime.kv_cache import KvCacheLimit
from opt_trt.runtime.memory import available_bytes
from opt_trt.runtime.request import Request, Result, TokenEvent, check_request
from opt_trt.runtime.scheduler import TokenSequence
from opt_trt.runtime.world import current_world
from opt_trt.step import Decoder, DecoderSpec

QUIET_SECONDS = 2  # a progress bar is shown only for what takes longer


class Session(Protocol):
    """What every backend opens an engine as. All requests are checked before the first one runs (`UserError`).

    More requests than `spec.max_batch_size` are queued and join as others leave.
    """

    spec: DecoderSpec

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in their order."""
        ...

    def stream(self, requests: Sequence[Request]) -> Iterator[TokenEvent]:
        """Tokens of all requests as they come; closing the iterator ends the generation."""
        ...

    def check(self, request: Request, index: int) -> None:
        """Raise `RequestFailed` if this engine can never serve the request."""
        ...

    def begin(self) -> Generation:
        """A generation that checked requests may join and leave at any time; whoever steps it closes it."""
        ...


class DecoderSession:
    """A session over a decoder of one rank; it owns the KV cache.

    Several streams may be open at once: they share the cache, and each advances when it is asked for tokens.
    """

    def __init__(self, decoder: Decoder, limit: KvCacheLimit) -> None:
        current_world(os.environ).require(1)
        self.spec = decoder.spec
        self._decoder = decoder
        num_blocks = kv_cache.pool_blocks(self.spec, limit, available_bytes())
        self._kv_cache = kv_cache.allocate(self.spec, num_blocks)
        self._pool = BlockPool(num_blocks)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in their order; a progress bar counts them."""
        generation = self._submit(requests)
        results: dict[int, Result] = {}
        bar = Bar(total=len(requests), unit="request", disable=None, delay=QUIET_SECONDS, leave=False)
        try:
            while generation.has_work:
                finished = [s for s in _step(generation) if s.finish_reason]
                results |= {s.index: result_of(s) for s in finished}
                bar.update(len(finished))
        finally:
            generation.close()
            bar.close()
        return [results[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[TokenEvent]:
        """Tokens of all requests as they come. Requests are checked here, not at the first token."""
        return _events(self._submit(requests))

    def check(self, request: Request, index: int) -> None:
        """Raise `RequestFailed` if decoder or KV cache can never serve the request."""
        check_request(request, index, self.spec, self._pool.num_blocks * self.spec.tokens_per_block)

    def begin(self) -> Generation:
        """An empty generation over this session's decoder and cache."""
        return Generation(self._decoder, self._kv_cache, self._pool)

    def _submit(self, requests: Sequence[Request]) -> Generation:
        generation = self.begin()
        for index, request in enumerate(requests):
            self.check(request, index)
            generation.submit(index, request)
        return generation


def _events(generation: Generation) -> Iterator[TokenEvent]:
    try:
        while generation.has_work:
            for sequence in _step(generation):
                yield event_of(sequence)
    finally:
        generation.close()


def _step(generation: Generation) -> list[TokenSequence]:
    """One step of requests that fail together."""
    stepped = generation.step()
    for sequence in stepped:
        if sequence.error is not None:
            raise sequence.error
    return stepped
