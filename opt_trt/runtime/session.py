"""A live engine: what every backend opens an engine as, and the session over a decoder of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from opt_trt.config.scheduling import Scheduling
from opt_trt.host.memory import free_bytes
from opt_trt.runtime.admission import check_request
from opt_trt.runtime.executor import Executor
from opt_trt.runtime.generate import Generation
from opt_trt.runtime.ranks import ALONE, Ranks
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling import kv_cache
from opt_trt.runtime.scheduling.block_pool import BlockPool
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.scheduling.prefix_index import PrefixIndex
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.step_message import unpack
from opt_trt.step import Decoder, DecoderSpec


class InFlight(Protocol):
    """All requests in flight; checked requests may join and leave between any two steps."""

    def submit(self, sequence: TokenSequence) -> None:
        """Queue a sequence whose request passed the session's `check`."""
        ...

    def cancel(self, sequence: TokenSequence) -> None:
        """Drop a sequence, finished or not, submitted or not."""
        ...

    def step(self) -> Sequence[TokenSequence]:
        """Run one step, and return the sequences that have one more token or have failed.

        A token is the last one if there is a finish reason. Beams give nothing until their last token. An error that
        no single request causes fails all sequences of the step; one that ends all steps, as Ctrl-C does, is raised.
        """
        ...


class Session(Protocol):
    """An open engine. `generate` and `stream` of `runtime.in_flight` answer its requests.

    More requests than `spec.max_batch_size` are queued and join as others leave.
    """

    spec: DecoderSpec

    @property
    def in_flight(self) -> InFlight:
        """All requests in flight."""
        ...

    def check(self, request: Request, index: int) -> None:
        """Raise `RequestFailed` if this engine can never serve the request."""
        ...

    def obey(self, message: memoryview) -> None:
        """Do on a following rank what the leader's session says it does."""
        ...

    def close(self) -> None:
        """Free the engine's memory on all ranks. No request may be in flight or come later. It may be called twice."""
        ...


class DecoderSession:
    """A session over a decoder; it owns the KV cache. With several ranks, each rank has one, and `ranks`.

    All requests in flight share its steps: those of several open streams, and of `generate` between them. A stream
    advances when any of them is asked for tokens. It must not be used by several threads at once.
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
        self.in_flight = Generation(self.executor, self._pool, scheduling)

    def check(self, request: Request, index: int) -> None:
        """Raise `RequestFailed` if the decoder or the KV cache can never serve the request."""
        check_request(request, index, self.spec, self._pool.num_blocks * self.spec.tokens_per_block)

    def obey(self, message: memoryview) -> None:
        """Carry out the step the leader planned."""
        self.executor.run(unpack(message))

    def close(self) -> None:
        """See `Session.close`."""
        self.executor.close()
