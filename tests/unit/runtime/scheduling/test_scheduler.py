"""Sequences join, run and leave by the rules, whatever is submitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import POLICIES, Scheduling
from opt_trt.errors import UserError
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.block_pool import BlockPool
from opt_trt.runtime.scheduling.prefix_index import PrefixIndex
from opt_trt.runtime.scheduling.scheduler import Scheduler, StepLimits
from opt_trt.runtime.sequence import Chunk, TokenSequence
from tests._processes import run_python

END = 2
OVERCOMMIT = Scheduling(policy="max_utilization")


def sequence(index: int, prompt_len: int, max_new_tokens: int = 4, end_id: int | None = None) -> TokenSequence:
    return TokenSequence(index, Request((5,) * prompt_len, max_new_tokens, end_id))


def scheduler(
    *sequences: TokenSequence,
    limits: tuple[int, int] = (8, 64),
    pool: BlockPool | None = None,
    scheduling: Scheduling | None = None,
    begins_early: bool = False,
) -> Scheduler:
    """`limits` are sequences and tokens of a step; blocks hold four tokens."""
    of_step = StepLimits(*limits, tokens_per_block=4, begins_early=begins_early)
    made = Scheduler(of_step, pool or BlockPool(64), scheduling or Scheduling())
    for one in sequences:
        made.submit(one)
    return made


def step(of: Scheduler, ends: Sequence[int] = ()) -> list[tuple[int, int, int]]:
    """Run a step; the sequences in `ends` get an end id. Index, first and last token of each chunk."""
    chunks = of.schedule()
    finish_step(of, chunks, ends)
    return [(c.sequence.index, c.start, c.end) for c in chunks]


def finish_step(of: Scheduler, chunks: Sequence[Chunk], ends: Sequence[int] = ()) -> list[TokenSequence]:
    of.advance(chunks)
    stepped = [c.sequence for c in chunks if c.is_last]
    for one in stepped:
        one.accept(END if one.index in ends else 7)
    of.retire()
    return stepped


def joined(of: Scheduler) -> list[int]:
    return [c.sequence.index for c in of.schedule()]


def test_it_needs_no_torch() -> None:
    code = "import sys, opt_trt.runtime.scheduling.scheduler; sys.exit('torch' in sys.modules)"
    assert run_python("-c", code).returncode == 0


def test_more_than_the_batch_holds_wait() -> None:
    assert joined(scheduler(*(sequence(i, 1) for i in range(5)), limits=(3, 64))) == [0, 1, 2]


def test_a_prompt_is_cut_where_the_step_is_full() -> None:
    of = scheduler(sequence(0, 6), sequence(1, 7), sequence(2, 1), limits=(8, 10))
    assert step(of) == [(0, 0, 6), (1, 0, 4)]
    assert step(of) == [(0, 6, 7), (1, 4, 7), (2, 0, 1)]


def test_a_sequence_gets_its_first_token_after_the_last_chunk_of_its_prompt() -> None:
    one = sequence(0, 5, max_new_tokens=1)
    of = scheduler(one, limits=(8, 3))
    step(of)
    assert one.output_ids == []
    step(of)
    assert one.output_ids == [7]


def test_running_sequences_take_their_tokens_first() -> None:
    of = scheduler(sequence(0, 1), sequence(1, 1), limits=(8, 10))
    step(of)
    of.submit(sequence(2, 20))
    assert step(of) == [(0, 1, 2), (1, 1, 2), (2, 0, 8)]


def test_prompts_are_cut_small_while_others_generate() -> None:
    of = scheduler(sequence(0, 40), limits=(8, 64), scheduling=Scheduling(context_chunk_size=3))
    assert step(of) == [(0, 0, 40)]  # no sequence waits for a token
    of.submit(sequence(1, 4))
    of.submit(sequence(2, 9))
    assert step(of) == [(0, 40, 41), (1, 0, 3)]
    assert step(of) == [(0, 41, 42), (1, 3, 4), (2, 0, 3)]


@pytest.mark.parametrize(("num_generating", "prompt_tokens"), [(1, 16), (10, 16), (11, 16), (12, 18), (40, 60)])
def test_unasked_a_step_takes_three_prompt_tokens_for_every_two_that_generate(
    num_generating: int, prompt_tokens: int
) -> None:
    of = scheduler(*(sequence(i, 1, 9) for i in range(num_generating)), limits=(64, 256), pool=BlockPool(256))
    step(of)
    of.submit(sequence(99, 100))
    assert step(of)[-1] == (99, 0, prompt_tokens)


def test_a_step_full_of_single_tokens_leaves_one_for_a_prompt() -> None:
    of = scheduler(*(sequence(i, 1, 9) for i in range(3)), sequence(3, 5), limits=(8, 4))
    step(of)
    assert step(of) == [(0, 1, 2), (1, 1, 2), (2, 1, 2), (3, 1, 2)]


def test_blocks_are_taken_when_their_first_token_comes() -> None:
    one = sequence(0, 4)
    of = scheduler(one)
    step(of)
    assert one.blocks == (0,)
    step(of)
    assert one.blocks == (0, 1)


def test_for_a_decoder_that_begins_early_blocks_are_taken_a_step_before() -> None:
    going_on, ending = sequence(0, 4), sequence(1, 4, max_new_tokens=1)
    of = scheduler(going_on, ending, begins_early=True)
    of.schedule()
    assert (going_on.blocks, ending.blocks) == ((0, 2), (1,))  # the other's token is its last


def test_nobody_goes_without_for_a_block_that_is_not_needed_yet() -> None:
    old, new = sequence(0, 4, 8), sequence(1, 4, 8)
    of = scheduler(old, new, pool=BlockPool(3), scheduling=OVERCOMMIT, begins_early=True)
    of.schedule()
    assert (old.blocks, new.blocks) == ((0, 2), (1,))
    half, whole = sequence(0, 5), sequence(1, 4)
    of = scheduler(half, whole, pool=BlockPool(5), begins_early=True)
    of.schedule()
    assert (half.blocks, whole.blocks) == ((0, 1), (2, 3))  # the last one is promised to the first sequence


def test_rows_of_a_search_get_no_block_they_would_share() -> None:
    leader = TokenSequence(0, Request((5,) * 4, 8, sampling=Sampling(num_beams=2)))
    of = scheduler(leader, begins_early=True)
    of.advance(of.schedule())
    assert leader.blocks == (0,)
    beams = [leader.fork(), leader.fork()]
    of.replace([leader], beams)
    for beam in beams:
        beam.output_ids += [7, 7, 7, 7]
        beam.num_cached = 7
    of.schedule()
    assert [len(beam.blocks) for beam in beams] == [2, 2]


def test_the_next_step_is_foreseen_unless_somebody_takes_a_place() -> None:
    of = scheduler(sequence(0, 1, 3), sequence(1, 1, 2), sequence(2, 1, 2), limits=(2, 64))
    foreseen = []
    while chunks := of.schedule():
        foreseen.append(of.goes_on(chunks))
        finish_step(of, chunks)
    # Two generate; the second ends and the third comes; the first ends; the last one does.
    assert foreseen == [True, False, True, False]


def test_a_sequence_without_room_for_its_last_token_waits() -> None:
    of = scheduler(sequence(0, 4), sequence(1, 5), pool=BlockPool(4))
    assert joined(of) == [0]


def test_over_committed_only_present_tokens_count() -> None:
    of = scheduler(sequence(0, 4), sequence(1, 5), pool=BlockPool(4), scheduling=OVERCOMMIT)
    assert joined(of) == [0, 1]


def test_the_newest_starts_over_when_blocks_run_out() -> None:
    old, new = sequence(0, 4, 8), sequence(1, 4, 8)
    of = scheduler(old, new, pool=BlockPool(4), scheduling=OVERCOMMIT)
    for _ in range(5):
        step(of)
    assert (old.num_cached, new.num_cached) == (8, 8)
    assert step(of) == [(0, 8, 9)]
    assert (new.num_cached, new.blocks, len(new.output_ids)) == (0, (), 5)
    assert step(of, ends=[0]) == [(0, 9, 10)]
    old.finish_reason = "end_id"
    of.retire()
    assert step(of) == [(1, 0, 9)]  # all it had, and its newest token, in one step


def test_nobody_overtakes_the_first_in_the_queue() -> None:
    of = scheduler(sequence(0, 4), sequence(1, 9), sequence(2, 1, 1), pool=BlockPool(4))
    assert joined(of) == [0]


def test_a_finished_sequence_makes_room_for_the_next() -> None:
    of = scheduler(sequence(0, 4, end_id=END), sequence(1, 4), pool=BlockPool(2))
    assert step(of, ends=[0]) == [(0, 0, 4)]
    assert step(of) == [(1, 0, 4)]


def test_a_known_beginning_is_not_computed_again() -> None:
    pool = BlockPool(64, PrefixIndex(4))
    of = scheduler(sequence(0, 8, 1), pool=pool, scheduling=Scheduling(enable_block_reuse=True))
    step(of)
    of.submit(sequence(1, 8))
    of.submit(sequence(2, 9))
    assert step(of) == [(1, 4, 8), (2, 8, 9)]
    assert of.running[0].blocks[0] == of.running[1].blocks[0]


def test_what_a_sequence_generated_is_known_too() -> None:
    pool = BlockPool(64, PrefixIndex(4))
    of = scheduler(sequence(0, 3, 6), pool=pool, scheduling=Scheduling(enable_block_reuse=True))
    while of.running or not pool.find((5, 5, 5, 7)):
        step(of)
    of.submit(TokenSequence(1, Request((5, 5, 5, 7, 7, 7, 7, 7, 8), 1)))
    assert step(of) == [(1, 8, 9)]


def test_context_logits_of_a_known_beginning_are_computed() -> None:
    pool = BlockPool(64, PrefixIndex(4))
    of = scheduler(sequence(0, 8, 1), pool=pool, scheduling=Scheduling(enable_block_reuse=True))
    step(of)
    of.submit(TokenSequence(1, Request((5,) * 8, 1, return_context_logits=True)))
    assert step(of) == [(1, 0, 8)]


def test_cancelling_frees_blocks_at_once_wherever_the_sequence_is() -> None:
    pool = BlockPool(64)
    running, waiting, gone = sequence(0, 9), sequence(1, 9), sequence(2, 9)
    of = scheduler(running, waiting, limits=(1, 64), pool=pool)
    step(of)
    for one in (running, waiting, gone):
        of.cancel(one)
    assert (pool.num_free, of.schedule()) == (64, [])
    assert {one.finish_reason for one in (running, waiting, gone)} == {"cancelled"}


def test_clear_frees_every_block_and_says_what_it_dropped() -> None:
    pool = BlockPool(9)
    sequences = [sequence(i, 9) for i in range(3)]
    of = scheduler(*sequences, pool=pool)
    step(of)
    assert of.clear() == sequences
    assert (pool.num_free, of.schedule()) == (9, [])


@pytest.mark.parametrize(
    ("bad", "says"),
    [({"policy": "greedy"}, "--scheduler_policy.*greedy"), ({"context_chunk_size": 0}, "--context_chunk_size.*0")],
)
def test_rules_that_make_no_sense_are_refused(bad: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Scheduling(**bad)  # type: ignore[arg-type]


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


PROMPTS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(5, 6)), max_size=25)
RULES = st.builds(Scheduling, st.sampled_from(POLICIES), st.none() | st.integers(1, 9), st.booleans())


@settings(deadline=None)  # the machine may be busy
@given(PROMPTS, st.integers(1, 6), st.integers(1, 20), st.integers(5, 16), RULES, st.data())
def test_any_workload_ends_within_the_limits(
    prompts: list[tuple[int, int, int]], batch: int, tokens: int, blocks: int, rules: Scheduling, data: st.DataObject
) -> None:
    """A decoder that begins steps early may write for a token that is not wanted: nothing reads that."""
    early = data.draw(st.booleans())
    pool = BlockPool(blocks, PrefixIndex(4) if rules.enable_block_reuse else None)
    of = scheduler(limits=(batch, tokens), pool=pool, scheduling=rules, begins_early=early)
    arriving = [TokenSequence(i, Request((t,) * n, m, END)) for i, (n, m, t) in enumerate(prompts)]
    content: dict[tuple[int, int], tuple[int, ...]] = {}  # of each slot: all tokens up to its own
    started: list[int] = []
    ended: Counter[int] = Counter()
    unfinished: list[TokenSequence] = []
    while arriving or unfinished:
        if arriving and (not unfinished or data.draw(st.booleans())):
            unfinished.append(arriving.pop(0))
            of.submit(unfinished[-1])
        if data.draw(st.integers(0, 9)) == 9:
            victim = data.draw(st.sampled_from(unfinished))
            of.cancel(victim)
            ended[victim.index] += 1
            unfinished.remove(victim)
            continue
        chunks = of.schedule()
        assert chunks, "work is left and no sequence is served"
        assert len(of.running) <= batch and sum(c.num_tokens for c in chunks) <= tokens
        if any(s.num_left == 1 and s.output_ids for s in of.running):
            most = rules.most_prompt_tokens(len(of.running))
            assert sum(c.num_tokens for c in chunks if c.num_tokens > 1) <= most
        owned = Counter(block for s in of.running for block in s.blocks)
        assert len(owned) == blocks - pool.num_free
        for chunk in chunks:
            one = chunk.sequence
            assert 4 * len(one.blocks) >= chunk.end and chunk.start == one.num_cached
            for position in range(chunk.end):
                slot = one.blocks[position // 4], position % 4
                if position >= chunk.start:
                    assert owned[slot[0]] == 1, "a block that others read is written to"
                    content[slot] = tuple(one.ids(0, position + 1))
                assert content[slot] == tuple(one.ids(0, position + 1)), "another sequence's keys and values"
        for chunk in chunks:
            table = chunk.sequence.blocks
            if early and chunk.is_last and chunk.end // 4 < len(table):
                assert owned[table[chunk.end // 4]] == 1, "a block that others read is written to"
                content[table[chunk.end // 4], chunk.end % 4] = (-1,)
        of.advance(chunks)
        for one in (c.sequence for c in chunks if c.is_last):
            started += [one.index] if not one.output_ids else []
            one.accept(data.draw(st.sampled_from([END, 7, 7])))
            ended[one.index] += one.finish_reason is not None
        of.retire()
        unfinished = [s for s in unfinished if s.finish_reason is None]
    assert ended == Counter(range(len(prompts))), "every request ends exactly once"
    assert pool.num_free == blocks
    if rules.policy == "guaranteed_no_evict":
        assert started == sorted(started), "a sequence was overtaken"
