"""Steps of a GPU that begin before they are asked for: the tokens stay the same, whatever ends, joins or is dropped."""

from __future__ import annotations

import gc
from weakref import ref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.backends.inductor.decoder.lookahead import LOOKED_BACK, HitRate, next_step, rows_within
from opt_trt.config.sampling import Sampling
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request
from opt_trt.step import StepInputs
from tests.unit._arrivals import REQUESTS, RULES, require_expected_outputs
from tests.unit._cuda_engine import AtOnce, Later, Rerun, predictions, session_of, sum_decoder
from tests.unit._decoders import expected_output

CALM = settings(deadline=None, max_examples=15)  # the machine may be busy


def expected(request: Request) -> tuple[int, ...]:
    return expected_output(request.prompt_ids, request.max_new_tokens, request.end_id)


def test_the_next_step_is_launched_before_anybody_waits_for_the_last_one():
    queue = Later()
    [result] = generate(session_of(sum_decoder(queue)), [Request((1, 3), 4)])
    assert result.output_ids == (4, 8, 0, 0)
    assert queue.log == [
        "put 0", "put 1", "wait 0", "done 0",  # the prompt; its token's step
        "put 2", "wait 1", "done 1",
        "put 3", "wait 2", "done 2",
        "wait 3", "done 3",  # the last token
    ]  # fmt: skip


def test_every_step_but_the_first_was_begun_and_no_step_is_computed_twice():
    captured: list[Rerun] = []
    requests = [Request((1, 3), 9), Request((5,), 9), Request((2, 2, 2), 9)]
    decoder = sum_decoder(AtOnce(), captured)
    results = generate(session_of(decoder), requests)
    assert [r.output_ids for r in results] == [expected(r) for r in requests]
    assert [one.replays for one in captured] == [8]
    assert list(predictions(decoder)) == [False] * 8


def test_sequences_that_end_leave_the_others_their_step():
    queue, captured = Later(), []
    requests = [Request((n,), tokens) for n, tokens in ((1, 3), (2, 9), (3, 5), (4, 9))]
    decoder = sum_decoder(queue, captured)
    results = generate(session_of(decoder), requests)
    assert [r.output_ids for r in results] == [expected(r) for r in requests]
    assert not any(predictions(decoder)) and queue.log.count("wait 8") == 1
    assert [one.replays for one in captured] == [6, 3]  # of four and three, then of two; none is computed anew


@CALM
@given(REQUESTS, st.integers(24, 96), st.integers(3, 32), RULES, st.booleans())
def test_tokens_do_not_depend_on_what_was_begun(requests, max_tokens, max_num_tokens, rules, slow):
    of = session_of(sum_decoder(Later() if slow else AtOnce(), max_num_tokens=max_num_tokens), max_tokens, rules)
    for _ in range(1 + rules.enable_block_reuse):  # the second time, beginnings are known
        assert [r.output_ids for r in generate(of, requests)] == [expected(r) for r in requests]
        assert of._pool.num_free == of._pool.num_blocks


@CALM
@given(REQUESTS, st.integers(24, 96), RULES, st.data())
def test_arrivals_and_cancellations_change_no_other_request(requests, max_tokens, rules, data):
    require_expected_outputs(session_of(sum_decoder(Later()), max_tokens, rules), requests, expected, data)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(num_beams=3), Sampling(top_k=3, penalty_alpha=0.4), Sampling(log_probs=1),
        Sampling(repetition_penalty=1.3),
    ],
    ids=["beams", "contrastive", "log_probs", "penalty"],
)  # fmt: skip
def test_what_needs_whole_logits_begins_nothing_and_may_run_beside_what_does(sampling):
    """Blocks are copied for beams and candidates while steps that were begun may be under way."""
    queue = Later()
    of, alone = session_of(sum_decoder(queue)), session_of(sum_decoder(AtOnce()))
    [searched] = generate(alone, [Request((1, 3, 5, 2, 7), 6, sampling=sampling)])
    greedy = stream(of, [Request((4, 4), 14)])
    tokens = [next(greedy).token_id for _ in range(3)]
    [beside] = generate(of, [Request((1, 3, 5, 2, 7), 6, sampling=sampling)])
    assert beside.output_ids == searched.output_ids
    tokens += [event.token_id for event in greedy]
    assert tuple(tokens) == expected_output((4, 4), 14)


def test_a_closed_session_leaves_a_step_under_way_behind():
    queue = Later()
    decoder = sum_decoder(queue)
    closed = session_of(decoder)
    tokens = stream(closed, [Request((1, 3), 8)])
    next(tokens)
    tokens.close()
    closed.close()
    assert generate(session_of(decoder), [Request((1, 3), 3)])[0].output_ids == (4, 8, 0)
    queue.finish()


def test_a_decoder_is_freed_with_its_last_reference():
    """Weights and graphs fill a GPU: they must not wait for the garbage collector, which finds circles."""
    decoder = sum_decoder(AtOnce())
    generate(session_of(decoder), [Request((1, 3), 4)])
    left = ref(decoder), ref(decoder.forward), ref(decoder.forward.model)
    gc.collect()
    gc.disable()
    try:
        del decoder
        assert [one() for one in left] == [None] * 3
    finally:
        gc.enable()


def test_a_step_that_fails_leaves_nothing_begun():
    queue = Later()
    decoder = sum_decoder(queue)
    of = session_of(decoder)
    tokens = stream(of, [Request((1, 3), 8)])
    next(tokens)
    queue.finish = lambda last=None: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        next(tokens)
    del queue.finish
    assert generate(of, [Request((1, 3), 8)])[0].output_ids == expected_output((1, 3), 8)


def test_a_sequence_ends_where_the_engine_does():
    [result] = generate(session_of(sum_decoder(Later())), [Request(tuple(range(16)), 8)])
    assert result.output_ids == expected_output(tuple(range(16)), 8)


def generating(lens: list[int], tables: list[list[int]], **changes) -> StepInputs:
    """Sequences of so many tokens after the step, of one token each."""
    lengths, count = torch.tensor(lens), len(lens)
    blocks = torch.tensor(tables, dtype=torch.int32)
    positions = lengths - 1
    values = {
        "input_ids": torch.arange(count) + 5, "position_ids": positions,
        "slot_mapping": blocks.gather(1, positions[:, None] // 4)[:, 0] * 4 + positions % 4,
        "query_start": torch.arange(count + 1).int(), "kv_lens": lengths.int(), "block_tables": blocks,
        "last_token_ids": torch.arange(count), "greedy": True, "goes_on": True,
    }  # fmt: skip
    return StepInputs(**(values | changes))


SPEC = sum_decoder(AtOnce()).spec


def cache_of(token: int) -> list[torch.Tensor]:
    """Of both layers; the token stands everywhere."""
    layers = [torch.full(SPEC.kv_shape(2), float(token)) for _ in range(2)]
    for layer in layers:
        layer[1, 1, 0, :, 0] = torch.arange(4)
    return layers


@pytest.mark.parametrize(("other", "token"), [(1, 14), (2, 13)])
def test_a_step_is_asked_for_over_a_cache_and_begun_over_the_same(other, token):
    captured: list[Rerun] = []
    decoder, first = sum_decoder(AtOnce(), captured), cache_of(1)
    second = first if other == 1 else cache_of(other)
    assert decoder.step(generating([3], [[1]]), first).token_ids.tolist() == [[1 + 1 + 5]]
    asked = generating([4], [[1]], input_ids=torch.tensor([7]))
    assert decoder.step(asked, second).token_ids.tolist() == [[token]]  # 1 + 1 + 5 + 7, or 2 + 2 + 2 + 7
    assert len(captured) == other  # over each cache


def test_the_next_step_is_one_token_further():
    step = next_step(generating([3, 8], [[7, 0, 0], [2, 9, 5]]), SPEC)
    assert step.input_ids.tolist() == [0, 1]
    assert step.position_ids.tolist() == [3, 8]
    assert step.slot_mapping.tolist() == [7 * 4 + 3, 5 * 4]
    assert step.kv_lens.tolist() == [4, 9] and step.kv_lens.dtype == torch.int32
    assert step.block_tables.tolist() == [[7, 0, 0], [2, 9, 5]]


@pytest.mark.parametrize(
    "inputs",
    [
        generating([4], [[3]]),  # no block for it
        generating([4, 2], [[3, 0], [5, 6]]),  # a table's padding is no block
        generating([3], [[3]], goes_on=False),  # the session knows better
        generating([24], [[3, 4, 5, 6, 7, 8, 9]]),  # beyond the longest sequence
        generating([3], [[3]], greedy=False),
        generating(
            [3], [[3]], query_start=torch.tensor([0, 1]).int(), last_token_ids=torch.tensor([], dtype=torch.long)
        ),
        generating([3, 3], [[3], [4]], last_token_ids=torch.tensor([1])),  # of a prompt's part no token comes
        generating([2] * 257, [[1]] * 257),  # more than are captured
    ],
)
def test_what_has_no_place_or_no_token_is_not_begun(inputs):
    assert next_step(inputs, SPEC) is None


def test_rows_are_found_wherever_they_went():
    begun = generating([3, 8, 6], [[7, 0], [2, 9], [4, 1]])
    asked = generating([6, 3], [[4, 1, 0], [7, 3, 0]], input_ids=torch.tensor([7, 5]))
    assert rows_within(begun, asked, 4).tolist() == [2, 0]  # of a table what lies beyond the length is not read


@pytest.mark.parametrize(
    "asked",
    [
        generating([3, 8], [[7, 0], [2, 9]], input_ids=torch.tensor([5, 1])),  # another token
        generating([3, 8], [[7, 0], [3, 9]]),  # another beginning
        generating([3, 4], [[7, 0], [9, 0]], slot_mapping=torch.tensor([30, 39])),
        generating([3, 5], [[7, 0], [2, 5]]),  # another slot
        generating([3, 12], [[7, 0, 0], [2, 9, 9]], slot_mapping=torch.tensor([30, 39])),
        generating([3], [[7]], greedy=False),
        generating([3, 8, 1], [[7, 0], [2, 9], [6, 0]]),  # a newcomer
    ],
)
def test_a_row_is_its_token_its_place_and_what_it_reads(asked):
    assert rows_within(generating([3, 8], [[7, 0], [2, 9]]), asked, 4) is None


def test_predictions_that_miss_are_not_acted_on_until_they_hold_again():
    rate = HitRate()
    assert rate.is_good
    rate.learn(missed=True)
    assert rate.is_good
    rate.learn(missed=True)
    assert not rate.is_good
    for _ in range(LOOKED_BACK - 1):
        rate.learn(missed=False)
    assert rate.is_good


def test_where_predictions_miss_steps_are_begun_no_more():
    """After two new tokens comes an end that could not be predicted, then the next prompt."""
    captured: list[Rerun] = []
    decoder = sum_decoder(AtOnce(), captured)
    of = session_of(decoder)
    for _ in range(12):
        assert generate(of, [Request((1, 3), 9, end_id=8)])[0].output_ids == (4, 8)
    assert [one.replays for one in captured] == [12 + 2]
    assert list(predictions(decoder))[-4:] == [True, False, True, False]


def test_where_somebody_takes_the_place_of_who_ends_no_step_is_begun_in_vain():
    """Six requests of three or four tokens, two at a time."""
    decoder = sum_decoder(AtOnce(), max_batch_size=2)
    requests = [Request((n,), 3 + n % 2) for n in range(6)]
    assert [r.output_ids for r in generate(session_of(decoder), requests)] == [expected(r) for r in requests]
    assert not any(predictions(decoder))
