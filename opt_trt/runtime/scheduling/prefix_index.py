"""The index of known prefixes: which full blocks of the KV cache hold them. It does not know the owners of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Key = tuple[int, tuple[int, ...]]  # serial number of the prefix before the block, tokens of the block
ROOT = 0  # serial number of the empty prefix


@dataclass(frozen=True)
class Prefix:
    """All tokens up to the end of a block. Serial numbers are never reused: what follows a forgotten prefix is lost."""

    serial: int
    block: int


class PrefixIndex:
    """A tree of prefixes; each node is a block of tokens. Tokens are compared, not only their hashes."""

    def __init__(self, tokens_per_block: int) -> None:
        self._tokens_per_block = tokens_per_block
        self._prefixes: dict[Key, Prefix] = {}
        self._keys: dict[int, Key] = {}
        self._last_serial = ROOT

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def find(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the blocks of the longest known prefix of `ids`, whole blocks only."""
        found: list[int] = []
        serial = ROOT
        for tokens in self._cut(ids):
            prefix = self._prefixes.get((serial, tokens))
            if prefix is None:
                break
            found.append(prefix.block)
            serial = prefix.serial
        return tuple(found)

    def add(self, ids: Sequence[int], blocks: Sequence[int]) -> None:
        """Record what the full blocks of a sequence hold. A prefix that is known already keeps its block."""
        serial = ROOT
        for tokens, block in zip(self._cut(ids), blocks, strict=False):  # the last block may not be full
            key = (serial, tokens)
            if key not in self._prefixes:
                self.forget(block)  # it may be known for a prefix whose beginning was forgotten
                self._last_serial += 1
                self._prefixes[key] = Prefix(self._last_serial, block)
                self._keys[block] = key
            serial = self._prefixes[key].serial

    def forget(self, block: int) -> None:
        """Forget a block whose content is about to change."""
        key = self._keys.pop(block, None)
        if key is not None:
            del self._prefixes[key]

    def _cut(self, ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
        size = self._tokens_per_block
        return (tuple(ids[start : start + size]) for start in range(0, len(ids) - size + 1, size))
