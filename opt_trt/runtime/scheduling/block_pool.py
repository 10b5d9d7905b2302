"""Which blocks of the KV cache are free, owned by how many, or worth keeping for prompts that begin alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from opt_trt.runtime.scheduling.prefix_index import PrefixIndex


def blocks_for(num_tokens: int, tokens_per_block: int) -> int:
    """Blocks that hold `num_tokens` tokens of one sequence."""
    return -(-num_tokens // tokens_per_block)


class BlockPool:
    """Block ids `0 .. num_blocks - 1`; a block is free when its last owner gave it back.

    Of the free blocks without a known content, the one freed last is taken first, so memory never used before stays
    untouched as long as possible; blocks in the index of prefixes go last, the one unused longest first.
    """

    def __init__(self, num_blocks: int, prefixes: PrefixIndex | None = None) -> None:
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, but their content is known; oldest first
        self._owners = [0] * num_blocks
        self._prefixes = prefixes
        self.num_blocks = num_blocks

    @property
    def num_free(self) -> int:
        """How many blocks `take` could give."""
        return len(self._free) + len(self._idle)

    def num_owners(self, block: int) -> int:
        """How many sequences have a block."""
        return self._owners[block]

    def take(self, count: int) -> tuple[int, ...]:
        """`count` blocks with one owner each, for a sequence's next tokens; the caller has looked at `num_free`."""
        assert 0 <= count <= self.num_free, (count, self.num_free)
        taken = tuple(self._free.pop() if self._free else self._evict() for _ in range(count))
        for block in taken:
            self._owners[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Give blocks, owned or idle, one more owner."""
        for block in blocks:
            assert self._owners[block] or block in self._idle, f"block {block} is free"
            self._idle.pop(block, None)
            self._owners[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """Take one owner from each block of a sequence: the end of a prefix is forgotten before its beginning."""
        for block in reversed(blocks):
            assert self._owners[block] > 0, f"block {block} was freed twice"
            self._owners[block] -= 1
            if self._owners[block] == 0:
                self._release(block)

    def find(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Blocks with the keys and values of the first ids, as far as any are known; to be shared before all else."""
        return () if self._prefixes is None else self._prefixes.find(ids)

    def remember(self, ids: Sequence[int], blocks: Sequence[int]) -> None:
        """Record what full blocks hold: the tokens of a sequence from its first one on."""
        if self._prefixes is not None:
            self._prefixes.add(ids, blocks)

    def forget(self, blocks: Sequence[int]) -> None:
        """What owned blocks hold is not to be reused."""
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
