"""The blocks of the KV cache: which are free, how many owners the others have, and which hold known prefixes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from opt_trt.runtime.scheduling.prefix_index import PrefixIndex


def blocks_for(num_tokens: int, tokens_per_block: int) -> int:
    """Return how many blocks hold `num_tokens` tokens of one sequence."""
    return -(-num_tokens // tokens_per_block)


class BlockPool:
    """Block ids `0 .. num_blocks - 1`; a block is free when its last owner gave it back.

    Free blocks without known content are taken first, the one freed last before others: memory that was never used
    stays untouched as long as possible. Free blocks in the index of prefixes are taken last, the longest unused first.
    """

    def __init__(self, num_blocks: int, prefixes: PrefixIndex | None = None) -> None:
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # free blocks whose content is known; oldest first
        self._owners = [0] * num_blocks
        self._prefixes = prefixes
        self.num_blocks = num_blocks

    @property
    def num_free(self) -> int:
        """The number of blocks that `take` could give."""
        return len(self._free) + len(self._idle)

    def num_owners(self, block: int) -> int:
        """Return how many sequences have a block."""
        return self._owners[block]

    def take(self, count: int) -> tuple[int, ...]:
        """Return `count` blocks with one owner each. The caller has checked `num_free`."""
        assert 0 <= count <= self.num_free, (count, self.num_free)
        taken = tuple(self._free.pop() if self._free else self._evict() for _ in range(count))
        for block in taken:
            self._owners[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Add an owner to each block, which may be owned or idle."""
        for block in blocks:
            assert self._owners[block] or block in self._idle, f"block {block} is free"
            self._idle.pop(block, None)
            self._owners[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """Remove an owner from each block of a sequence. The end of a prefix is then forgotten before its beginning."""
        for block in reversed(blocks):
            assert self._owners[block] > 0, f"block {block} was freed twice"
            self._owners[block] -= 1
            if self._owners[block] == 0:
                self._release(block)

    def find(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the known blocks with keys and values of the first ids. They must be shared before any other call."""
        return () if self._prefixes is None else self._prefixes.find(ids)

    def remember(self, ids: Sequence[int], blocks: Sequence[int]) -> None:
        """Record what full blocks hold: the tokens of a sequence from its first token on."""
        if self._prefixes is not None:
            self._prefixes.add(ids, blocks)

    def forget(self, blocks: Sequence[int]) -> None:
        """Forget what owned blocks hold, so that it is not reused."""
        if self._prefixes is not None:
            for block in blocks:
                self._prefixes.forget(block)

    def _release(self, block: int) -> None:
        if self._prefixes is not None and block in self._prefixes:
            self._idle[block] = None
        else:
            self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        assert self._prefixes is not None
        self._prefixes.forget(block)
        return block
