"""Choose the tokens of the next step: in-flight batching, callers in turn. No tensors here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opt_trt.config.scheduling import Scheduling
from opt_trt.runtime.scheduling.block_pool import BlockPool, blocks_for
from opt_trt.runtime.scheduling.caller_turns import WaitingQueue
from opt_trt.runtime.sequence import Chunk, TokenSequence


@dataclass(frozen=True)
class StepLimits:
    """The limits of one step, the size of a block in tokens, and whether the decoder begins steps early."""

    max_batch_size: int
    max_num_tokens: int
    tokens_per_block: int
    begins_early: bool = False


class Scheduler:
    """Sequences wait, run, and leave between steps. The first in the queue is served next: none is passed over.

    Every running sequence in the generation phase has one token in each step. The rest of `max_num_tokens` goes to
    prompts, in order; while any sequence generates, at most `most_prompt_tokens` of it.

    A sequence with a reservation is admitted only when the blocks for all its tokens are free or promised to it, so
    that it can finish. Others start when their present tokens fit. When a block is missing, the newest of these starts
    over at the head of the queue, and its tokens are computed again. The oldest never starts over, so all of them end.
    """

    def __init__(self, limits: StepLimits, pool: BlockPool, scheduling: Scheduling) -> None:
        self.limits = limits
        self.running: list[TokenSequence] = []  # in order of admission
        self._pool = pool
        self._scheduling = scheduling
        self._waiting = WaitingQueue()
        self._max_rows = min(limits.max_batch_size, limits.max_num_tokens)

    def submit(self, sequence: TokenSequence) -> None:
        """Queue a sequence that fits an empty batch and an empty pool."""
        self._waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step, and give their sequences blocks. An empty list means that all is done."""
        generating = sum(s.num_left == 1 for s in self.running)
        budget = self.limits.max_num_tokens - generating
        if generating:
            budget = min(budget, self._scheduling.most_prompt_tokens(generating))
        num_running = len(self.running)
        chunks: list[Chunk] = []
        for sequence in tuple(self.running):
            is_context = sequence.num_left > 1
            count = min(sequence.num_left, budget) if is_context else 1
            if count and sequence.blocks and self._extend(sequence, count):  # a sequence without blocks starts over
                chunks.append(sequence.chunk(count))
                budget -= count * is_context
        if len(self.running) == num_running:  # while a sequence starts over, no other joins
            chunks += self._admit(budget)
        if self.limits.begins_early:
            for chunk in chunks:
                self._look_ahead(chunk)
        return chunks

    def goes_on(self, chunks: Sequence[Chunk]) -> bool:
        """Return whether the next step will have no new sequences, as far as is known now."""
        final = sum(chunk.is_final for chunk in chunks)
        return final == 0 or (final < len(chunks) and not self._waiting)

    def advance(self, chunks: Sequence[Chunk]) -> None:
        """Note that the tokens of a step are in the KV cache now."""
        block = self.limits.tokens_per_block
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_cached = chunk.end
            is_full = chunk.start // block < chunk.end // block
            if is_full and sequence.leader is None and self._scheduling.enable_block_reuse:
                self._pool.remember(sequence.ids(0, chunk.end), sequence.blocks)

    def retire(self) -> None:
        """Free the blocks of finished sequences; what failed ones leave in the cache is not reused."""
        if any(s.finish_reason for s in self.running):
            for sequence in self.running:
                if sequence.finish_reason == "failed":
                    self._pool.forget(sequence.blocks)
                if sequence.finish_reason:
                    self._free(sequence)
            self.running = [s for s in self.running if not s.finish_reason]

    def cancel(self, sequence: TokenSequence) -> None:
        """Drop a sequence, running, waiting or finished, and free its blocks at once."""
        sequence.finish_reason = sequence.finish_reason or "cancelled"
        self._waiting.drop(sequence)
        for one in [s for s in self.running if sequence in (s, s.leader)]:
            self.running.remove(one)
            self._free(one)

    def replace(self, old: Sequence[TokenSequence], new: Sequence[TokenSequence]) -> list[tuple[int, int]]:
        """Replace rows of a search by the rows that continue them, and return the copies of blocks to make.

        New rows name the blocks of the rows they continue. Full blocks are shared. If several rows name a last block
        that is not full, each row but one gets a copy of it.
        """
        for row in new:
            self._pool.share(row.blocks)
        for row in old:
            self._pool.give_back(row.blocks)
            row.blocks = ()
        place = self.running.index(old[0])
        self.running[place : place + len(old)] = new
        copies = []
        for row in new:
            last = row.blocks[-1]
            if row.num_cached % self.limits.tokens_per_block and self._pool.num_owners(last) > 1:
                (copy,) = self._pool.take(1)
                self._pool.give_back((last,))
                row.blocks = (*row.blocks[:-1], copy)
                copies.append((last, copy))
        return copies

    def clear(self) -> list[TokenSequence]:
        """Drop and return all sequences; free their blocks, whose content is not reused."""
        dropped = list(dict.fromkeys(s.leader or s for s in (*self.running, *self._waiting)))
        for sequence in self.running:
            self._pool.forget(sequence.blocks)
            self._free(sequence)
        self.running = []
        self._waiting.clear()
        return dropped

    def _admit(self, budget: int) -> list[Chunk]:
        """Let waiting sequences join, in order, while there is room for them and at most `budget` tokens."""
        chunks: list[Chunk] = []
        while self._waiting and budget and self._start(self._waiting.first):
            sequence = self._waiting.take()
            count = min(sequence.num_left, budget)
            self.running.append(sequence)
            extended = self._extend(sequence, count)
            assert extended, sequence.index
            chunks.append(sequence.chunk(count))
            budget -= count
        return chunks

    def _start(self, sequence: TokenSequence) -> bool:
        """Give a waiting sequence its reservation and the blocks that already hold its first tokens, if all fits."""
        if sum(s.num_rows for s in self.running) + sequence.num_rows > self._max_rows:
            return False
        known = self._known_blocks(sequence)
        reserved = self._reservation(sequence)
        size = self.limits.tokens_per_block
        # Without a reservation, each running sequence must have a block to grow.
        needed = reserved or blocks_for(sequence.num_tokens, size) + len(self.running)
        idle = sum(not self._pool.num_owners(block) for block in known)
        if needed - len(known) + idle > self._pool.num_free - self._promised() and (reserved or self.running):
            return False
        self._pool.share(known)
        sequence.blocks, sequence.num_cached, sequence.reserved = known, len(known) * size, reserved
        return True

    def _known_blocks(self, sequence: TokenSequence) -> tuple[int, ...]:
        """Return the blocks that hold a sequence's beginning. At least one token is always computed, for its logits."""
        if not self._scheduling.enable_block_reuse or sequence.request.keeps_parts:
            return ()
        return self._pool.find(sequence.ids(0, sequence.num_tokens - 1))

    def _reservation(self, sequence: TokenSequence) -> int:
        """Return the blocks to reserve for a sequence; 0 if it may start over, as no search or kept logits may."""
        starts_over = not sequence.request.keeps_parts and sequence.num_rows == 1
        if self._scheduling.policy == "max_utilization" and starts_over:
            return 0
        return sequence.request.max_blocks(self.limits.tokens_per_block)

    def _promised(self) -> int:
        """Return how many free blocks are promised by reservations."""
        held: dict[TokenSequence, set[int]] = {}
        for sequence in self.running:
            if sequence.reserved:
                held.setdefault(sequence.leader or sequence, set()).update(sequence.blocks)
        return sum(leader.reserved - len(blocks) for leader, blocks in held.items())

    def _extend(self, sequence: TokenSequence, count: int) -> bool:
        """Take blocks for `count` more tokens; return False if the sequence is the newest and has to start over."""
        missing = blocks_for(sequence.num_cached + count, self.limits.tokens_per_block) - len(sequence.blocks)
        if missing <= 0:
            return True
        while not sequence.reserved and missing > self._pool.num_free - self._promised():
            newest = next(s for s in reversed(self.running) if not s.reserved)
            self.running.remove(newest)
            self._free(newest)
            self._waiting.start_over(newest)
            if newest is sequence:
                return False
        sequence.blocks += self._pool.take(missing)
        return True

    def _look_ahead(self, chunk: Chunk) -> None:
        """Give a sequence the block of its next step now, if it will need one and no other sequence lacks it.

        Rows of a search get none, because they continue from shared blocks.
        """
        sequence = chunk.sequence
        if not chunk.is_last or chunk.is_final or sequence.leader or sequence.num_rows > 1:
            return
        missing = blocks_for(chunk.end + 1, self.limits.tokens_per_block) - len(sequence.blocks)
        if missing > 0 and (sequence.reserved or self._pool.num_free > self._promised()):
            sequence.blocks += self._pool.take(missing)

    def _free(self, sequence: TokenSequence) -> None:
        self._pool.give_back(sequence.blocks)
        sequence.blocks, sequence.num_cached, sequence.reserved = (), 0, 0
