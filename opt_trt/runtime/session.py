"""A live engine: it accepts requests and answers with results or with tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from opt_trt.config.scheduling import Scheduling
from opt_trt.host.memory import free_bytes
from opt_trt.runtime.admission import check_request
from opt_trt.runtime.executor import Executor
from opt_trt.runtime.generate import Generation
from opt_trt.runtime.in_flight import InFlight, check_all, generate_all
from opt_trt.runtime.ranks import ALONE, Ranks
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.scheduling import kv_cache
from opt_trt.runtime.scheduling.block_pool import BlockPool
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.scheduling.prefix_index import PrefixIndex
from opt_trt.runtime.step_message import unpack
from opt_trt.runtime.token_stream import TokenStream
from opt_trt.step import Decoder, DecoderSpec


class Session(Protocol):
    """What every backend opens an engine as. All requests are checked before the first one runs (`UserError`).

    More requests than `spec.max_batch_size` are queued and join as others leave.
    """

    spec: DecoderSpec

    @property
    def generation(self) -> InFlight:
        """All that is in flight."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in their order."""
        ...

    def stream(self, requests: Sequence[Request]) -> TokenStream:
        """Tokens of all requests as they come; closing it, or cancelling one request, frees their memory at once."""
        ...

    def check(self, request: Request, index: int) -> None:
        """Raise `RequestFailed` if this engine can never serve the request."""
        ...

    def obey(self, message: memoryview) -> None:
        """On a rank that follows: do what the leader's session says it does."""
        ...

    def close(self) -> None:
        """Free its memory, on all ranks; no request may be in flight, none comes after this; twice is as once."""
        ...


class DecoderSession:
    """A session over a decoder; it owns the KV cache. Where there are several ranks, each has one, and `ranks`.

    All requests in flight share its steps: those of several open streams, and of `generate` between them. A stream
    advances when any of them is asked for tokens. Not for several threads at once.
    """

    def __init__(
        self, decoder: Decoder, limit: KvCacheLimit, scheduling: Scheduling | None = None, ranks: Ranks = ALONE
    ) -> None:
        self.spec = decoder.spec
        scheduling = scheduling or Scheduling()
        free = free_bytes(self.spec.device) // (self.spec.sharers or ranks.local_size)
        num_blocks = ranks.fewest(kv_cache.pool_blocks(self.spec, limit, free))
        cache = kv_cache.allocate(self.spec, num_blocks)
        prefixes = PrefixIndex(self.spec.tokens_per_block) if scheduling.enable_block_reuse else None
        self._pool = BlockPool(num_blocks, prefixes)
        self.executor = Executor(decoder, cache, ranks)
        self.generation = Generation(self.executor, self._pool, scheduling)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in their order; a progress bar counts them."""
        check_all(requests, self.check)
        return generate_all(self.generation, requests)

    def stream(self, requests: Sequence[Request]) -> TokenStream:
        """Tokens of all requests as they come. Requests are checked here, not at the first token."""
        check_all(requests, self.check)
        return TokenStream(self.generation, requests)

    def check(self, request: Request, index: int) -> None:
        """Raise `RequestFailed` if decoder or KV cache can never serve the request."""
        check_request(request, index, self.spec, self._pool.num_blocks * self.spec.tokens_per_block)

    def obey(self, message: memoryview) -> None:
        """Carry out the step the leader planned."""
        self.executor.run(unpack(message))

    def close(self) -> None:
        """See `Session.close`."""
        self.executor.close()
