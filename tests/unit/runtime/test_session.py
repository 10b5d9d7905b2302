"""A session serves any mix of requests as if each were alone, and refuses by name what it cannot serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.runtime.generate import Generation
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.ranks import Alone
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import DecoderSpec, StepInputs, StepOutputs
from tests.unit._arrivals import REQUESTS, RULES, require_expected_outputs
from tests.unit._decoders import SPEC, SumDecoder, expected_output, spec

CALM = settings(deadline=None, max_examples=40)  # the machine may be busy
GATHERS = spec(gather_context_logits=True, gather_generation_logits=True)


def session(
    of: DecoderSpec = SPEC, max_tokens: int | None = None, scheduling: Scheduling | None = None
) -> DecoderSession:
    return DecoderSession(SumDecoder(of), KvCacheLimit(max_tokens), scheduling)


def steps(of: DecoderSession) -> list[StepInputs]:
    decoder = of.executor.decoder
    assert isinstance(decoder, SumDecoder)
    return decoder.steps


def test_output_is_new_tokens_only() -> None:
    [result] = generate(session(), [Request((1, 3), 4)])
    assert (result.prompt_ids, result.output_ids, result.finish_reason) == ((1, 3), (4, 8, 0, 0), "length")


def test_the_end_id_is_the_last_new_token() -> None:
    [result] = generate(session(), [Request((1, 3), 4, end_id=8)])
    assert (result.output_ids, result.finish_reason) == ((4, 8), "end_id")


def test_the_end_id_in_a_prompt_ends_nothing() -> None:
    [result] = generate(session(), [Request((2, 2, 1), 3, end_id=2)])
    assert result.output_ids == (5, 10, 4)


def test_no_requests_no_results() -> None:
    assert generate(session(), []) == []


@CALM
@given(REQUESTS, st.integers(24, 96), st.integers(3, 32), RULES)
def test_batched_in_flight_equals_alone(
    requests: list[Request], max_tokens: int, max_num_tokens: int, scheduling: Scheduling
) -> None:
    of = session(spec(max_num_tokens=max_num_tokens), max_tokens, scheduling)
    for _ in range(1 + scheduling.enable_block_reuse):  # the second time, beginnings are known
        outputs = [result.output_ids for result in generate(of, requests)]
        assert outputs == [expected_output(r.prompt_ids, r.max_new_tokens, r.end_id) for r in requests]
        assert of._pool.num_free == of._pool.num_blocks


@CALM
@given(REQUESTS.filter(bool), st.integers(24, 96), RULES, st.data())
def test_arrivals_and_cancellations_change_no_other_request(
    requests: list[Request], max_tokens: int, scheduling: Scheduling, data: st.DataObject
) -> None:
    def expected(request: Request) -> tuple[int, ...]:
        return expected_output(request.prompt_ids, request.max_new_tokens, request.end_id)

    require_expected_outputs(session(max_tokens=max_tokens, scheduling=scheduling), requests, expected, data)


@CALM
@given(REQUESTS)
def test_streaming_equals_blocking(requests: list[Request]) -> None:
    of = session()
    streamed: list[list[int]] = [[] for _ in requests]
    reasons: dict[int, str] = {}
    for event in stream(of, requests):
        assert event.index not in reasons, "a token after the last one"
        streamed[event.index].append(event.token_id)
        if event.finish_reason:
            reasons[event.index] = event.finish_reason
    results = generate(of, requests)
    assert [tuple(ids) for ids in streamed] == [r.output_ids for r in results]
    assert reasons == {i: r.finish_reason for i, r in enumerate(results)}


def test_a_step_is_packed_as_the_contract_says() -> None:
    of = session(spec(max_batch_size=3))
    generate(of, [Request((1, 2, 3, 4, 5), 3), Request((6,), 1), Request((7, 8), 3), Request((9,), 1)])
    first, second, third = steps(of)
    assert first.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert first.query_start.tolist() == [0, 5, 6, 8]
    assert first.kv_lens.tolist() == [5, 1, 2]
    assert first.block_tables.tolist() == [[0, 1], [2, 0], [3, 0]]
    assert first.slot_mapping.tolist() == [0, 1, 2, 3, 4, 8, 12, 13]
    assert first.last_token_ids.tolist() == [4, 5, 7]
    assert second.input_ids.tolist() == [15, 15, 9]  # two in the generation phase, then the one that joined
    assert second.position_ids.tolist() == [5, 2, 0]
    assert second.query_start.tolist() == [0, 1, 2, 3]
    assert second.kv_lens.tolist() == [6, 3, 1]
    assert second.block_tables.tolist() == [[0, 1], [3, 0], [2, 0]]
    assert second.slot_mapping.tolist() == [5, 14, 8]
    assert third.input_ids.tolist() == [14, 14]
    assert third.block_tables.tolist() == [[0, 1], [3, 0]]


def test_steps_have_the_types_of_the_contract() -> None:
    of = session()
    generate(of, [Request((1, 2), 3), Request((3,), 3)])
    int64, int32 = torch.int64, torch.int32
    for inputs in steps(of):
        tensors = [tensor for tensor in vars(inputs).values() if isinstance(tensor, torch.Tensor)]
        assert [t.dtype for t in tensors] == [int64, int64, int64, int32, int32, int32, int64]
        assert all(t.is_contiguous() for t in tensors)


def test_the_block_table_is_as_wide_as_the_longest_sequence_left() -> None:
    of = session()
    generate(of, [Request((1,) * 8, 1), Request((1,), 3)])
    assert [inputs.block_tables.shape for inputs in steps(of)] == [(2, 2), (1, 1), (1, 1)]


def test_context_logits_have_a_row_per_prompt_token() -> None:
    [result] = generate(session(GATHERS), [Request((1, 3, 4), 2, return_context_logits=True)])
    assert result.context_logits is not None and result.context_logits.dtype == torch.float32
    assert result.context_logits.argmax(-1).tolist() == [1, 4, 8]  # sums of the prompt up to each token


def test_context_logits_of_one_token_are_kept_too() -> None:
    [result] = generate(session(GATHERS), [Request((3,), 1, return_context_logits=True)])
    assert result.context_logits is not None and result.context_logits.argmax(-1).tolist() == [3]


def test_generation_logits_have_a_row_per_new_token() -> None:
    [result] = generate(session(GATHERS), [Request((1, 3), 3, return_generation_logits=True)])
    assert result.generation_logits is not None
    assert result.generation_logits.argmax(-1).tolist() == [4, 8, 0]


def test_logits_go_to_those_who_asked() -> None:
    requests = [
        Request((1, 2, 3), 5),
        Request((4, 5), 2, return_context_logits=True),
        Request((6,), 4, return_generation_logits=True),
        Request((7, 8, 9), 1),
        Request((1, 1, 1, 1), 3, return_context_logits=True, return_generation_logits=True),
        Request((2, 3), 2),
    ]
    results = generate(session(GATHERS), requests)
    assert [r.output_ids for r in results] == [expected_output(r.prompt_ids, r.max_new_tokens) for r in requests]
    shapes = [[None if t is None else tuple(t.shape) for t in (r.context_logits, r.generation_logits)] for r in results]
    assert shapes == [[None, None], [(2, 16), None], [None, (4, 16)], [None, None], [(4, 16), (3, 16)], [None, None]]
    assert results[1].context_logits is not None and results[1].context_logits.argmax(-1).tolist() == [4, 9]
    assert results[4].context_logits is not None and results[4].context_logits.argmax(-1).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_request_that_fails_is_raised_and_frees_the_cache(streaming: bool) -> None:
    of, bans = session(), Sampling(logit_bias=tuple((i, -float("inf")) for i in range(16)))
    requests = [Request((1, 3), 4), Request((1,), 4, sampling=bans)]
    with pytest.raises(UserError, match="prompt 1 has no token left to choose after 0 new ones; relax logit_bias"):
        list(stream(of, requests)) if streaming else generate(of, requests)
    assert of._pool.num_free == of._pool.num_blocks


def test_a_request_that_fails_in_a_stream_changes_nothing_for_another_stream() -> None:
    of, bans = session(), Sampling(logit_bias=tuple((i, -float("inf")) for i in range(16)))
    good, bad = stream(of, [Request((1, 3), 4)]), stream(of, [Request((1,), 4, sampling=bans), Request((2,), 9)])
    assert next(bad).index == 1
    with pytest.raises(UserError, match="prompt 0 has no token left to choose"):
        next(bad)
    assert [event.token_id for event in good] == [4, 8, 0, 0]
    assert of._pool.num_free == of._pool.num_blocks


def test_logits_are_not_a_view_of_what_the_decoder_returned() -> None:
    class Reusing(SumDecoder):
        def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
            outputs = super().step(inputs, kv_cache)
            self.buffer = outputs.logits
            return outputs

    decoder = Reusing(GATHERS)
    of = DecoderSession(decoder, KvCacheLimit())
    [result] = generate(of, [Request((3, 1), 1, return_context_logits=True, return_generation_logits=True)])
    decoder.buffer.zero_()
    assert result.context_logits is not None and result.context_logits.any()
    assert result.generation_logits is not None and result.generation_logits.any()


@pytest.mark.parametrize(
    ("of", "request_", "says"),
    [
        (SPEC, Request((), 1), "prompt 1 is empty"),
        (SPEC, Request((3, 16), 1), "prompt 1 has token id 16, the vocabulary is 0 to 15"),
        (SPEC, Request((-1,), 1), "prompt 1 has token id -1"),
        (SPEC, Request((1,) * 17, 1), "prompt 1 has 17 tokens, the engine takes 16;.*--max_input_len"),
        (SPEC, Request((1,), 0), "asks for 0 new tokens; --max_output_len"),
        (SPEC, Request((1,) * 16, 9), r"16 tokens \+ 9 new ones = 25, the engine takes 24;.*--max_seq_len"),
        (SPEC, Request((1,) * 12, 9), "the whole KV cache holds 20; raise --max_tokens_in_paged_kv_cache"),
        (SPEC, Request((1,), 1, return_context_logits=True), "--gather_context_logits"),
        (SPEC, Request((1,), 1, return_generation_logits=True), "--gather_generation_logits"),
        (SPEC, Request((1,), 1, sampling=Sampling(bad_words=((3, 16),))), "prompt 1 bans.* token id 16"),
        (SPEC, Request((1,), 1, sampling=Sampling(logit_bias=((-1, 0.5),))), "biases.* token id -1"),
        (SPEC, Request((1,), 3, sampling=Sampling(min_length=4)), "at least 4 and at most 3 new tokens"),
    ],
)
@pytest.mark.parametrize("verb", [generate, stream])
def test_what_cannot_be_served_is_named_before_anything_runs(
    of: DecoderSpec, request_: Request, says: str, verb: Callable[..., object]
) -> None:
    limited = session(of, max_tokens=20)
    with pytest.raises(UserError, match=says):
        verb(limited, [Request((1,), 1), request_])
    assert steps(limited) == []


def test_the_longest_sequence_allowed_is_served() -> None:
    [result] = generate(session(max_tokens=24), [Request((1,) * 16, 8)])
    assert result.output_ids == expected_output((1,) * 16, 8)


def interrupt_at(step: int) -> DecoderSession:
    decoder = SumDecoder()

    def interrupt(inputs: StepInputs) -> None:
        if len(decoder.steps) == step:
            decoder.steps.append(inputs)
            raise KeyboardInterrupt

    decoder.before_step = interrupt
    return DecoderSession(decoder, KvCacheLimit())


@pytest.mark.parametrize("step", [0, 1, 3])
def test_ctrl_c_leaves_the_session_usable(step: int) -> None:
    of = interrupt_at(step)
    with pytest.raises(KeyboardInterrupt):
        generate(of, [Request((1, 2), 6)] * 9)
    assert of._pool.num_free == of._pool.num_blocks
    assert generate(of, [Request((1, 3), 3)])[0].output_ids == (4, 8, 0)


@pytest.mark.parametrize("verb", [generate, stream])
def test_ctrl_c_while_requests_are_queued_leaves_none_behind(
    verb: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    of, submitted = session(), []

    def submit(sequence: TokenSequence) -> None:
        submitted.append(sequence)
        Generation.submit(of.in_flight, sequence)
        if len(submitted) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(of.in_flight, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        verb(of, [Request((1, 2), 6)] * 3)
    monkeypatch.undo()
    assert generate(of, [Request((1, 3), 3)])[0].output_ids == (4, 8, 0)
    assert [len(inputs.kv_lens) for inputs in steps(of)] == [1, 1, 1]  # the two that were queued take part in none


def test_closing_a_stream_frees_its_blocks() -> None:
    of = session()
    events = stream(of, [Request((1, 2), 6)] * 9)
    next(events)
    assert of._pool.num_free < of._pool.num_blocks
    del events
    assert of._pool.num_free == of._pool.num_blocks


def test_open_streams_share_steps() -> None:
    of = session()
    requests = Request((1, 2, 3), 6), Request((4, 5), 6)
    streams = [stream(of, [r]) for r in requests]
    interleaved = [tuple(event.token_id for event in pair) for pair in zip(*streams, strict=True)]
    assert list(zip(*interleaved, strict=True)) == [expected_output(r.prompt_ids, 6) for r in requests]
    assert [inputs.kv_lens.shape[0] for inputs in steps(of)] == [2] * 6


def test_generating_goes_on_with_open_streams() -> None:
    of = session()
    tokens = stream(of, [Request((1, 2, 3), 6)])
    first = next(tokens)
    assert generate(of, [Request((4, 5), 2)])[0].output_ids == expected_output((4, 5), 2)
    assert (first.token_id, *(event.token_id for event in tokens)) == expected_output((1, 2, 3), 6)


def test_a_cancelled_request_frees_its_blocks_and_gives_no_more_tokens() -> None:
    of = session()
    tokens = stream(of, [Request((1, 2, 3), 6), Request((4, 5), 6)])
    assert [next(tokens).index for _ in range(2)] == [0, 1]
    free = of._pool.num_free
    tokens.cancel(0)
    assert of._pool.num_free == free + 1
    assert [event.index for event in tokens] == [1] * 5


def test_a_step_that_fails_is_named_to_the_other_streams_too() -> None:
    of = interrupt_at(1)
    other = stream(of, [Request((1, 2), 6)])
    with pytest.raises(KeyboardInterrupt):
        generate(of, [Request((1, 2), 6)])
    assert next(other).token_id == expected_output((1, 2), 1)[0]  # from before
    with pytest.raises(UserError, match=r"shared with other requests of this session failed \(KeyboardInterrupt\)"):
        next(other)
    assert next(other, None) is None


def test_a_prompt_longer_than_a_step_is_cut() -> None:
    of = session(spec(max_num_tokens=3))
    assert generate(of, [Request((1, 2, 3, 4, 5, 6, 7, 8), 2)])[0].output_ids == expected_output(range(1, 9), 2)
    assert [inputs.input_ids.shape[0] for inputs in steps(of)] == [3, 3, 2, 1]


def test_context_logits_of_a_prompt_longer_than_a_step_are_whole() -> None:
    of = session(replace(GATHERS, max_num_tokens=3))
    [result] = generate(of, [Request((1, 3, 4, 5, 2), 1, return_context_logits=True)])
    assert result.context_logits is not None
    assert result.context_logits.argmax(-1).tolist() == [1, 4, 8, 13, 15]


def test_logits_that_are_no_number_are_named() -> None:
    class Broken(SumDecoder):
        def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
            outputs = super().step(inputs, kv_cache)
            return replace(outputs, logits=outputs.logits * float("nan"))

    with pytest.raises(UserError, match="expected finite logits"):
        generate(DecoderSession(Broken(), KvCacheLimit()), [Request((1,), 1)])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("max_num_tokens", [32, 6])  # the prompt in the step that fails, or in the one before it too
def test_what_a_failed_step_left_in_the_cache_is_not_reused(max_num_tokens: int, beams: int) -> None:
    class BrokenAtFirst(SumDecoder):
        factor = float("nan")

        def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
            outputs = super().step(inputs, kv_cache)
            if int(inputs.kv_lens[0]) == len(prompt):
                outputs, self.factor = replace(outputs, logits=outputs.logits * self.factor), 1.0
            return outputs

    decoder, prompt = BrokenAtFirst(spec(max_num_tokens=max_num_tokens)), (1, 2, 3, 4, 5, 6, 7, 8, 9)
    of = DecoderSession(decoder, KvCacheLimit(), Scheduling(enable_block_reuse=True))
    with pytest.raises(UserError, match="expected finite logits"):
        generate(of, [Request(prompt, 3, sampling=Sampling(num_beams=beams))])
    assert of._pool.find(prompt) == () and of._pool.num_free == of._pool.num_blocks
    for new in (9, 1):  # all of the prompt is computed, and known the next time
        before = len(decoder.steps)
        assert generate(of, [Request(prompt, 3)])[0].output_ids == expected_output(prompt, 3)
        context = [inputs for inputs in decoder.steps[before:] if inputs.kv_lens[0] <= 9]
        assert sum(len(inputs.input_ids) for inputs in context) == new


CHANCE = Sampling(top_k=0, top_p=1.0, random_seed=3)


@CALM
@given(REQUESTS, st.integers(24, 96))
def test_drawn_tokens_do_not_depend_on_what_runs_beside(requests: list[Request], max_tokens: int) -> None:
    drawn = [replace(r, sampling=CHANCE) for r in requests]
    alone = [generate(session(), [r])[0].output_ids for r in drawn]
    assert [result.output_ids for result in generate(session(max_tokens=max_tokens), drawn)] == alone


@pytest.mark.parametrize("sampling", [Sampling(), CHANCE])
def test_padding_rows_of_the_vocabulary_are_never_chosen(sampling: Sampling) -> None:
    class Padded(SumDecoder):
        def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
            outputs = super().step(inputs, kv_cache)
            padding = torch.full((outputs.logits.shape[0], 3), 9.0)
            return replace(outputs, logits=torch.cat((outputs.logits, padding), dim=1))

    requests = [Request((1, 3), 8, sampling=sampling, return_generation_logits=True)] * 4
    padded = generate(DecoderSession(Padded(GATHERS), KvCacheLimit()), requests)
    assert [r.output_ids for r in padded] == [r.output_ids for r in generate(session(GATHERS), requests)]
    assert all(r.generation_logits is not None and r.generation_logits.shape == (8, 16) for r in padded)


def test_copies_of_a_failed_step_are_forgotten() -> None:
    of = session()
    of.in_flight._copies = [(1, 2)]
    of.in_flight._scheduler.schedule = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        of.in_flight.step()
    assert of.in_flight._copies == []


def test_ranks_of_one_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Neighbours(Alone):
        local_size = 4

    decoder = SumDecoder(spec(max_batch_size=64))
    monkeypatch.setattr("opt_trt.runtime.session.free_bytes", lambda _: 80 * decoder.spec.kv_block_bytes())
    counts = [
        DecoderSession(decoder, KvCacheLimit(), ranks=ranks)._pool.num_blocks for ranks in (Alone(), Neighbours())
    ]
    assert counts == [72, 18]


def test_a_closed_session_refuses_requests_and_may_be_closed_again() -> None:
    of = session()
    of.close()
    of.close()
    with pytest.raises(UserError, match="the engine is closed: open it again"):
        generate(of, [Request((1, 3), 8)])
    assert steps(of) == []


def test_a_session_that_a_finalizer_closes_inside_a_step_finishes_the_step() -> None:
    class Closing(Alone):
        def step(self, message: Callable[[], bytes]) -> AbstractContextManager[None]:
            of.close()
            return super().step(message)

    of = DecoderSession(SumDecoder(), KvCacheLimit(), ranks=Closing())
    assert generate(of, [Request((1, 3), 1)])[0].output_ids == (4,)
    with pytest.raises(UserError, match="closed"):
        generate(of, [Request((1, 3), 1)])
