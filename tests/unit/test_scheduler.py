"""Sequences join, run and leave by the rules, whatever is submitted."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.errors import UserError
from opt_trt.runtime.block_pool import BlockPool
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduler import Scheduler, StepLimits, TokenSequence

END = 2


def sequence(index: int, prompt_len: int, max_new_tokens: int = 4, end_id: int | None = None) -> TokenSequence:
    return TokenSequence(index, Request((5,) * prompt_len, max_new_tokens, end_id))


def scheduler(
    *sequences: TokenSequence, batch: int = 8, tokens: int = 64, blocks: int = 64, pool: BlockPool | None = None
) -> Scheduler:
    made = Scheduler(StepLimits(batch, tokens, tokens_per_block=4), pool or BlockPool(blocks))
    for one in sequences:
        made.submit(one)
    return made


def joined(of: Scheduler) -> list[int]:
    return [s.index for s in of.admit()]


def test_it_needs_no_torch() -> None:
    code = "import sys, opt_trt.runtime.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_more_than_the_batch_holds_wait() -> None:
    assert joined(scheduler(*(sequence(i, 1) for i in range(5)), batch=3)) == [0, 1, 2]


def test_prompts_beyond_the_tokens_of_a_step_wait() -> None:
    assert joined(scheduler(sequence(0, 6), sequence(1, 4), sequence(2, 1), tokens=10)) == [0, 1]


def test_running_sequences_take_their_tokens_first() -> None:
    of = scheduler(sequence(0, 1), sequence(1, 1), tokens=10)
    of.admit()
    of.submit(sequence(2, 9))
    assert joined(of) == []
    of.running[0].finish_reason = "length"
    of.retire()
    assert joined(of) == [2]


def test_cancelling_forgets_who_waits_and_frees_who_runs() -> None:
    pool = BlockPool(64)
    of = scheduler(*(sequence(i, 1) for i in range(4)), batch=2, pool=pool)
    of.admit()
    of.cancel(1)
    of.cancel(2)
    assert (of.retire(), pool.num_free) == ([0], 62)
    assert joined(of) == [3]


def test_blocks_for_prompt_and_all_new_tokens_are_reserved() -> None:
    of = scheduler(sequence(0, 5, max_new_tokens=4), blocks=4)
    of.admit()
    assert of.running[0].blocks == (0, 1, 2)


def test_a_sequence_without_room_for_its_last_token_waits() -> None:
    assert joined(scheduler(sequence(0, 4), sequence(1, 5), blocks=4)) == [0]


def test_nobody_overtakes_the_first_in_the_queue() -> None:
    assert joined(scheduler(sequence(0, 1), sequence(1, 11), sequence(2, 1), tokens=10)) == [0]


def test_a_finished_sequence_makes_room_for_the_next() -> None:
    of = scheduler(sequence(0, 4), sequence(1, 4), blocks=2)
    of.admit()
    of.running[0].finish_reason = "end_id"
    assert (of.retire(), joined(of)) == ([], [1])


def test_rows_that_stay_keep_their_order() -> None:
    of = scheduler(*(sequence(i, 1) for i in range(4)))
    of.admit()
    of.running[1].finish_reason = "length"
    assert (of.retire(), [s.index for s in of.running]) == ([0, 2, 3], [0, 2, 3])


def test_a_pool_held_by_another_scheduler_is_named_not_waited_for() -> None:
    pool = BlockPool(2)
    scheduler(sequence(0, 4), pool=pool).admit()
    with pytest.raises(UserError, match="another stream"):
        scheduler(sequence(0, 4), pool=pool).admit()


def test_clear_frees_every_block() -> None:
    pool = BlockPool(9)
    of = scheduler(sequence(0, 9), sequence(1, 9), sequence(2, 9), pool=pool)
    of.admit()
    of.clear()
    assert (pool.num_free, of.has_work) == (9, False)


def test_end_id_finishes_a_sequence_and_is_kept() -> None:
    one = sequence(0, 1, max_new_tokens=9, end_id=END)
    for token in (7, END):
        one.accept(token)
    assert (one.output_ids, one.finish_reason) == ([7, END], "end_id")


def test_end_id_at_the_last_token_is_the_reason() -> None:
    one = sequence(0, 1, max_new_tokens=1, end_id=END)
    one.accept(END)
    assert one.finish_reason == "end_id"


def test_without_end_id_only_the_length_ends() -> None:
    one = sequence(0, 1, max_new_tokens=2)
    one.accept(END)
    assert one.finish_reason is None
    one.accept(END)
    assert one.finish_reason == "length"


REQUESTS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8)), max_size=25)


@settings(deadline=None)  # the machine may be busy
@given(REQUESTS, st.integers(1, 6), st.integers(12, 20), st.integers(5, 16), st.data())
def test_any_workload_ends_within_the_limits(
    requests: list[tuple[int, int]], batch: int, tokens: int, blocks: int, data: st.DataObject
) -> None:
    pool = BlockPool(blocks)
    of = scheduler(
        *(sequence(i, *r, end_id=END) for i, r in enumerate(requests)), batch=batch, tokens=tokens, pool=pool
    )
    admitted: list[int] = []
    ended: list[int] = []
    while of.has_work:
        new = of.admit()
        admitted += [s.index for s in new]
        stepped = list(of.running)
        owned = [block for s in stepped for block in s.blocks]
        step_tokens = len(stepped) - len(new) + sum(len(s.request.prompt_ids) for s in new)
        assert 0 < len(stepped) <= batch and step_tokens <= tokens
        assert len(set(owned)) == len(owned) == blocks - pool.num_free
        assert all(4 * len(s.blocks) >= s.request.max_tokens for s in stepped)
        for one in stepped:
            one.accept(data.draw(st.sampled_from([END, 7, 7])))
        ended += [s.index for s in stepped if s.finish_reason]
        of.retire()
    assert admitted == list(range(len(requests)))
    assert sorted(ended) == admitted
    assert pool.num_free == blocks
