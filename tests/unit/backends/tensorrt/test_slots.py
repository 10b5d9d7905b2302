"""Steps over slots: what runs they are cut into, that every answer is right, and that wrong decoders are noticed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.backends.tensorrt import slot_decoder, slots
from opt_trt.backends.tensorrt.bindings import (
    GENERATION,
    INPUT_IDS,
    POSITION_IDS,
    PROMPT,
    WANTED,
    WRITE_INDICES,
)
from opt_trt.backends.tensorrt.slot_decoder import ALIGNED, FeedBuffer, SlotDecoder
from opt_trt.backends.tensorrt.slots import SlotSpec, begun, cut, rows_for, slot_spec
from opt_trt.config.sampling import GREEDY, Sampling
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit, pool_blocks
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import StepInputs
from tests.unit._arrivals import REQUESTS, require_expected_outputs
from tests.unit._decoders import expected_output
from tests.unit.backends.tensorrt._sum_run import MOST_TOKENS, SumRun, poisoned, sum_config

LENGTHS = (14, 1, 5, 16, 2, 9, 1, 12)  # one token behind a longer chunk: outputs come in another order
RULES = st.builds(Scheduling, st.sampled_from(("guaranteed_no_evict", "max_utilization")), st.integers(1, 9))


def spec_of(most_tokens: int = 16, **limits: int) -> SlotSpec:
    spec = slot_spec(sum_config(**limits), "cpu")
    return replace(spec, shape=replace(spec.shape, most_tokens=most_tokens))


def session(
    decoder: SlotDecoder | None = None, max_tokens: int | None = None, scheduling: Scheduling | None = None
) -> DecoderSession:
    """Return a session over caches of NaN; it has 5 slots, if `max_tokens` does not say otherwise."""
    decoder = decoder or SlotDecoder(spec_of(), SumRun(sum_config().pretrained_config))
    return poisoned(DecoderSession(decoder, KvCacheLimit(max_tokens), scheduling))


def prompt(length: int) -> tuple[int, ...]:
    return tuple((7 * i + 3 * length) % 16 for i in range(length))


def step(*sequences: tuple[int, int, int], wanted: Sequence[int] = (0,)) -> StepInputs:
    """Return a step of sequences, each of a slot, the position of its first new token and their number."""
    counts = [count for _, _, count in sequences]
    positions = [first + i for _, first, count in sequences for i in range(count)]
    return StepInputs(
        input_ids=torch.arange(100, 100 + len(positions)), position_ids=torch.tensor(positions),
        slot_mapping=torch.zeros(len(positions), dtype=torch.int64),
        query_start=torch.tensor([0, *counts]).cumsum(0).int(),
        kv_lens=torch.tensor([first + count for _, first, count in sequences]).int(),
        block_tables=torch.tensor([[slot] for slot, _, _ in sequences]).int(), last_token_ids=torch.tensor(wanted),
    )  # fmt: skip


def test_single_tokens_are_one_run_and_each_chunk_is_its_own() -> None:
    inputs = step((4, 9, 1), (2, 0, 3), (1, 0, 1), (3, 5, 2), wanted=(0, 3, 4, 6))
    generation, first, second = cut(inputs, spec_of(), num_slots=5)
    assert (generation.profile, generation.slots, generation.tokens) == (GENERATION, slice(0, 5), (0, 4))
    scratch, pad = spec_of().scratch, spec_of().pad_id
    assert generation.feeds[INPUT_IDS].tolist() == [[pad], [104], [pad], [pad], [100]]
    assert generation.feeds[POSITION_IDS].tolist() == [[0], [0], [0], [0], [9]]
    assert generation.feeds[WRITE_INDICES].tolist() == [scratch, 0, scratch, scratch, 9]
    assert generation.feeds[WANTED].tolist() == [4, 1, 0, 0, 0]
    assert (first.profile, first.slots, first.tokens) == (PROMPT, slice(2, 3), (3,))
    assert [first.feeds[name].tolist() for name in (INPUT_IDS, POSITION_IDS)] == [[[101, 102, 103]], [[0, 1, 2]]]
    assert [first.feeds[name].tolist() for name in (WRITE_INDICES, WANTED)] == [[0], [2]]
    assert (second.slots, second.tokens, second.feeds[WRITE_INDICES].tolist()) == (slice(3, 4), (6,), [5])
    assert begun(inputs) == [2, 1]


def test_a_chunk_longer_than_the_engine_takes_is_cut() -> None:
    runs = cut(step((0, 3, 10), wanted=(8, 9)), spec_of(most_tokens=4), num_slots=5)
    assert [run.feeds[POSITION_IDS][0].tolist() for run in runs] == [[3, 4, 5, 6], [7, 8, 9, 10], [11, 12]]
    assert [run.feeds[WRITE_INDICES].tolist() for run in runs] == [[3], [7], [11]]
    assert [run.tokens for run in runs] == [(), (), (8, 9)]
    assert [run.feeds[WANTED].tolist() for run in runs] == [[0], [0], [0, 1]]  # an engine computes one row at least


@pytest.mark.parametrize(("slots", "rows"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)])
def test_rows_are_a_power_of_two_or_all_there_are(slots, rows) -> None:
    assert rows_for(slots, 6) == rows


def test_a_sequence_has_one_slot_and_idle_rows_write_behind_the_longest() -> None:
    spec = spec_of()
    assert spec.tokens_per_block == spec.max_seq_len == MOST_TOKENS and spec.scratch >= MOST_TOKENS
    of = session(max_tokens=MOST_TOKENS + 1)
    assert [tuple(cache.shape) for cache in of.executor.kv_cache] == [(2, 2, spec.shape.capacity, 4)] * 4
    assert spec.kv_block_bytes() == sum(cache[0].nbytes for cache in of.executor.kv_cache)


def test_memory_that_holds_no_slot_is_refused_with_what_makes_slots_smaller() -> None:
    with pytest.raises(UserError, match=r"at least one block of .* or build with a smaller --max_seq_len$"):
        pool_blocks(spec_of(), KvCacheLimit(), free_bytes=0)


def answers(of: DecoderSession, new_tokens: int = 8) -> None:
    """Check answers to ragged prompts, with all logits, and one that is as long as a sequence can be."""
    requests = [Request(prompt(n), new_tokens, return_context_logits=True) for n in LENGTHS]
    requests += [Request(prompt(6), MOST_TOKENS - 6), Request(prompt(11), 2, sampling=replace(GREEDY, num_beams=2))]
    for result in generate(of, requests):
        assert result.output_ids == expected_output(result.prompt_ids, len(result.output_ids))
        if result.context_logits is not None:
            sums = torch.tensor(result.prompt_ids).cumsum(0) % 16
            assert result.context_logits.argmax(1).tolist() == sums.tolist()


@pytest.mark.parametrize("chunk", [1, 3, None])
@pytest.mark.parametrize("max_tokens", [2 * MOST_TOKENS, None])
def test_more_requests_than_slots_are_answered(chunk, max_tokens) -> None:
    answers(session(max_tokens=max_tokens, scheduling=Scheduling(context_chunk_size=chunk)))


def test_an_engine_of_short_prompts_takes_long_ones() -> None:
    answers(session(SlotDecoder(spec_of(most_tokens=3), SumRun(sum_config().pretrained_config))))


@given(requests=REQUESTS, rules=RULES, data=st.data())
@settings(max_examples=25, deadline=None)
def test_requests_that_come_and_go_at_any_time_are_answered(requests, rules, data) -> None:
    def expected(request: Request) -> tuple[int, ...]:
        return expected_output(request.prompt_ids, request.max_new_tokens, request.end_id)

    require_expected_outputs(session(scheduling=rules), requests, expected, data)


def test_a_cancelled_request_frees_its_slot_for_the_next() -> None:
    of = session(max_tokens=MOST_TOKENS)  # one slot
    streamed = stream(of, [Request(prompt(5), 15)])
    assert [next(streamed).token_id for _ in range(3)] == list(expected_output(prompt(5), 3))
    streamed.cancel(0)
    assert [event.token_id for event in stream(of, [Request(prompt(9), 6)])] == list(expected_output(prompt(9), 6))


def test_drawn_tokens_come_from_the_decoder() -> None:
    of = session()
    [one] = generate(
        of, [Request(prompt(5), 6, sampling=Sampling(top_k=0, top_p=1.0, temperature=1e-3, random_seed=4))]
    )
    assert of.spec.draws and one.output_ids == expected_output(prompt(5), 6)


def test_inputs_are_moved_in_one_piece_and_begin_where_an_engine_takes_them() -> None:
    buffer = FeedBuffer(torch.device("cpu"))
    for sizes in ((1, 70, 64), (3,), (200, 1)):
        feeds = [{str(n): torch.arange(n, dtype=torch.int32).view(1, n)} for n in sizes]
        placed = buffer.place(feeds)
        assert all(torch.equal(a[name], b[name]) for a, b in zip(feeds, placed, strict=True) for name in a)
        starts = [tensor.storage_offset() for run in placed for tensor in run.values()]
        assert all(start % ALIGNED == 0 for start in starts) and len(set(starts)) == len(starts)


# One wrong edit each: the text that it replaces, which must be there once, and the text in its place.
MUTATIONS = {
    "idle rows overwrite the first token": ("torch.full((rows,), spec.scratch)", "torch.zeros(rows).long()"),
    "idle rows write into a long prompt": ("self.shape.capacity - 1", "9"),
    "slots are not cleared": ("torch._foreach_zero_([cache[slot] for cache in kv_cache])", "pass"),
    "the wrong slots are cleared": ("cache[slot] for cache", "cache[slot - 1] for cache"),
    "only keys are cleared": ("cache[slot] for cache in kv_cache", "cache[slot] for cache in kv_cache[::2]"),
    "a single token is written one row late": (
        "writes[slots] = inputs.position_ids[packed]",
        "writes[slots] = 1 + inputs.position_ids[packed]",
    ),
    "a chunk is written one row late": ("positions[:, 0], selected", "positions[:, 0] + 1, selected"),
    "a single token has the next position": (
        "inputs.input_ids[packed], inputs.position_ids[packed]\n",
        "inputs.input_ids[packed], inputs.position_ids[packed] + 1\n",
    ),
    "a chunk has the next positions": (
        ", inputs.position_ids[None, packed]",
        ", inputs.position_ids[None, packed] + 1",
    ),
    "a chunk goes to the first slot": ("slice(span.slot, span.slot + 1)", "slice(0, 1)"),
    "rows begin at the second slot": ("GENERATION, slice(0, rows)", "GENERATION, slice(1, 1 + rows)"),
    "logits are of the slots in order": ("[span.slot for span in tokens]", "sorted(span.slot for span in tokens)"),
    "logits are of the first token of a chunk": ("[token - span.first for token in tokens]", "[0 for token in tokens]"),
    "parts of a chunk are lost": ("range(span.first, span.end, most)", "range(span.first, span.first + 1, most)"),
    "parts of a chunk have gaps": ("min(first + most, span.end)", "min(first + most - 1, span.end)"),
    "the step's order of outputs is ignored": (
        "[row_of[token] for token in inputs.last_token_ids.tolist()]",
        "list(range(len(inputs.last_token_ids)))",
    ),
    "the feeds of runs are swapped": ("zip(runs, placed, strict=True)", "zip(runs, placed[::-1], strict=True)"),
    "the padding is wanted": ("outputs[name][: len(run.tokens)]", "outputs[name]"),
}


def mutated(old: str, new: str) -> type[SlotDecoder]:
    """Return the decoder's class with one edit, in either of the two modules."""
    sources = {module: inspect.getsource(module) for module in (slots, slot_decoder)}
    assert sum(source.count(old) for source in sources.values()) == 1, f"{old} must be there once"
    edited = []
    for module, source in sources.items():
        copy = ModuleType(module.__name__)
        exec(compile(source.replace(old, new), str(module.__file__), "exec"), copy.__dict__)
        edited.append(copy)
    edited[1].__dict__.update(cut=edited[0].cut, begun=edited[0].begun)
    edited[1].SlotDecoder.spec_class = edited[0].SlotSpec
    return edited[1].SlotDecoder


def decoder_of(cls: type[SlotDecoder]) -> SlotDecoder:
    spec = spec_of(most_tokens=6)
    return cls(getattr(cls, "spec_class", SlotSpec)(**vars(spec)), SumRun(sum_config().pretrained_config))


def busy(cls: type[SlotDecoder]) -> None:
    answers(session(decoder_of(cls), scheduling=Scheduling(context_chunk_size=8)))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_decoder_is_noticed(name) -> None:
    with pytest.raises(Exception):  # noqa: B017, a wrong token, NaN or a shape that does not fit
        busy(mutated(*MUTATIONS[name]))


def test_the_right_decoder_passes_the_same_checks() -> None:
    busy(mutated("def cut(", "def cut("))
