"""Which blocks of the KV cache are free, and how many a sequence needs."""

from __future__ import annotations


def blocks_for(num_tokens: int, tokens_per_block: int) -> int:
    """Blocks that hold `num_tokens` tokens of one sequence."""
    return -(-num_tokens // tokens_per_block)


class BlockPool:
    """Block ids `0 .. num_blocks - 1`, each owned by at most one sequence.

    The block freed last is taken first, so memory never used before stays untouched as long as possible.
    """

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks - 1, -1, -1))
        self.num_blocks = num_blocks

    @property
    def num_free(self) -> int:
        """How many blocks `take` could give."""
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...]:
        """`count` blocks, in the order of a sequence's tokens; the caller has looked at `num_free`."""
        assert 0 < count <= len(self._free), (count, len(self._free))
        taken = tuple(self._free[: -count - 1 : -1])
        del self._free[-count:]
        return taken

    def give_back(self, blocks: tuple[int, ...]) -> None:
        """Free what `take` gave."""
        self._free.extend(reversed(blocks))
        assert len(self._free) <= self.num_blocks, "a block was freed twice"
