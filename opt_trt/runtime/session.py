"""A live engine: it accepts requests and answers with results or with tokens as they come."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from tqdm import tqdm

from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.runtime import kv_cache
from opt_trt.runtime.block_pool import BlockPool
from opt_trt.runtime.generate import Generation, result_of
from opt_trt.runtime.kv_cache import KvCacheLimit
from opt_trt.runtime.memory import available_bytes
from opt_trt.runtime.prefix_index import PrefixIndex
from opt_trt.runtime.request import Request, Result, check_request
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.token_stream import TokenStream
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

    def stream(self, requests: Sequence[Request]) -> TokenStream:
        """Tokens of all requests as they come; closing it, or cancelling one request, frees their memory at once."""
        ...


class DecoderSession:
    """A session over a decoder of one rank; it owns the KV cache.

    All requests in flight share its steps: those of several open streams, and of `generate` between them. A stream
    advances when any of them is asked for tokens. Not for several threads at once.
    """

    def __init__(self, decoder: Decoder, limit: KvCacheLimit, scheduling: Scheduling | None = None) -> None:
        current_world(os.environ).require(1)
        self.spec = decoder.spec
        scheduling = scheduling or Scheduling()
        num_blocks = kv_cache.pool_blocks(self.spec, limit, available_bytes())
        self._kv_cache = kv_cache.allocate(self.spec, num_blocks)
        prefixes = PrefixIndex(self.spec.tokens_per_block) if scheduling.enable_block_reuse else None
        self._pool = BlockPool(num_blocks, prefixes)
        self._generation = Generation(decoder, self._kv_cache, self._pool, scheduling)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in their order; a progress bar counts them."""
        self._check(requests)
        sequences = [TokenSequence(index, request) for index, request in enumerate(requests)]
        for sequence in sequences:
            self._generation.submit(sequence)
        unfinished = set(sequences)
        bar = tqdm(total=len(requests), unit="request", disable=None, delay=QUIET_SECONDS, leave=False)
        try:
            while unfinished:
                finished = {s for s in self._generation.step() if s.finish_reason} & unfinished
                unfinished -= finished
                bar.update(len(finished))
        finally:
            for sequence in unfinished:
                self._generation.cancel(sequence)
            bar.close()
        return [result_of(sequence) for sequence in sequences]

    def stream(self, requests: Sequence[Request]) -> TokenStream:
        """Tokens of all requests as they come. Requests are checked here, not at the first token."""
        self._check(requests)
        if any(request.sampling.num_beams > 1 for request in requests):
            raise UserError(
                "beams change until the last token: they cannot be streamed; drop --streaming or --num_beams"
            )
        return TokenStream(self._generation, requests)

    def _check(self, requests: Sequence[Request]) -> None:
        pool_tokens = self._pool.num_blocks * self.spec.tokens_per_block
        for index, request in enumerate(requests):
            check_request(request, index, self.spec, pool_tokens)
