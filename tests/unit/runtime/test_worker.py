"""A session in a thread of its own serves callers of any thread; only a request that causes an error gets it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from queue import SimpleQueue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.config.sampling import Sampling
from opt_trt.errors import UserError
from opt_trt.runtime.request import Request, RequestFailed
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import DecoderSession
from opt_trt.runtime.worker import Worker
from opt_trt.step import StepInputs
from tests.unit._decoders import SPEC, SumDecoder, expected_output

BANS_ALL = Sampling(logit_bias=tuple((i, -float("inf")) for i in range(SPEC.vocab_size)))
BANS_LATER = Sampling(no_repeat_ngram_size=1)  # fails when every token of the vocabulary was used


@dataclass(eq=False)
class Diary:
    """A listener that notes everything."""

    whole: bool = False
    tokens: list[int] = field(default_factory=list)
    end: SimpleQueue[object] = field(default_factory=SimpleQueue)

    def advanced(self, sequence: TokenSequence) -> None:
        self.tokens.append(sequence.output_ids[-1])
        if sequence.finish_reason is not None:
            self.end.put(sequence.finish_reason)

    def failed(self, error: Exception) -> None:
        self.end.put(error)


def session(decoder: SumDecoder | None = None) -> DecoderSession:
    return DecoderSession(decoder or SumDecoder(), KvCacheLimit())


def outcome(diary: Diary) -> tuple[list[int], object]:
    return diary.tokens, diary.end.get(timeout=60)


REQUESTS = st.lists(
    st.builds(
        Request,
        st.lists(st.integers(0, 15), min_size=1, max_size=12).map(tuple),
        st.integers(1, 8),
        sampling=st.sampled_from([Sampling()] * 4 + [BANS_ALL, BANS_LATER]),
    ),
    max_size=10,
)


@settings(deadline=None, max_examples=30)
@given(REQUESTS)
def test_a_request_that_fails_changes_nothing_for_the_others(requests: list[Request]) -> None:
    worker, diaries = Worker(session()), [Diary() for _ in requests]
    for request, diary in zip(requests, diaries, strict=True):
        worker.submit([(request, diary)])
    for request, diary in zip(requests, diaries, strict=True):
        tokens, end = outcome(diary)
        if request.sampling == Sampling():
            assert (tuple(tokens), end) == (expected_output(request.prompt_ids, request.max_new_tokens), "length")
        elif request.sampling == BANS_ALL:
            assert tokens == [] and isinstance(end, RequestFailed)
    worker.close()
    assert worker._session._pool.num_free == worker._session._pool.num_blocks


def test_a_request_fails_in_mid_course_without_a_step_for_the_others() -> None:
    used_up = Sampling(bad_words=tuple((9, 9, i) for i in range(16)), logit_bias=((9, 50.0),))
    decoder = SumDecoder()
    worker, good, bad = Worker(session(decoder)), Diary(), Diary()
    worker.submit([(Request((1, 2), 6), good), (Request((9,), 6, sampling=used_up), bad)])
    assert outcome(good) == (list(expected_output((1, 2), 6)), "length")
    tokens, end = outcome(bad)
    assert tokens == [9] and isinstance(end, RequestFailed) and "no token left to choose after 1 new" in str(end)
    worker.close()
    assert [inputs.kv_lens.shape[0] for inputs in decoder.steps] == [2, 2, 1, 1, 1, 1]


def test_a_broken_decoder_fails_all_in_flight_and_the_worker_lives_on() -> None:
    broken = [True]

    def fail(inputs: StepInputs) -> None:
        if broken[0]:
            raise MemoryError("no memory")

    worker, diaries = Worker(session(SumDecoder(before_step=fail))), [Diary(), Diary()]
    worker.submit([(Request((1,), 3), diary) for diary in diaries])
    assert [type(outcome(diary)[1]) for diary in diaries] == [MemoryError, MemoryError]
    broken[0] = False
    worker.submit([(Request((1, 3), 4), diaries[0])])
    assert outcome(diaries[0]) == ([4, 8, 0, 0], "length")
    worker.close()


def test_requests_of_several_threads_share_a_batch() -> None:
    decoder = SumDecoder()
    ready = threading.Event()
    decoder.before_step = lambda inputs: ready.wait(60)
    worker, diaries = Worker(session(decoder)), [Diary() for _ in range(5)]
    threads = [threading.Thread(target=worker.submit, args=([(Request((1, i), 5), d)],)) for i, d in enumerate(diaries)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ready.set()
    assert [outcome(d)[0] for d in diaries] == [list(expected_output((1, i), 5)) for i in range(5)]
    assert max(inputs.kv_lens.shape[0] for inputs in decoder.steps) == SPEC.max_batch_size
    worker.close()


def test_closing_ends_requests_in_flight_by_name_and_leaves_no_thread() -> None:
    before = threading.active_count()
    stepped = threading.Event()
    worker, diary = Worker(session(SumDecoder(before_step=lambda inputs: stepped.set()))), Diary()
    worker.submit([(Request((1,), 20), diary)])
    stepped.wait(60)
    worker.close()
    worker.close()
    assert threading.active_count() == before
    end = outcome(diary)[1]
    assert end == "length" or (isinstance(end, UserError) and "the engine is closed: open it again" in str(end))
    with pytest.raises(UserError, match="the engine is closed"):
        worker.submit([(Request((1,), 1), Diary())])


def test_a_cancelled_request_is_heard_of_no_more() -> None:
    turn, go_on = threading.Event(), threading.Event()

    def pause(inputs: StepInputs) -> None:
        turn.set()
        go_on.wait(60)

    decoder = SumDecoder(before_step=pause)
    worker, gone, stays = Worker(session(decoder)), Diary(), Diary()
    submitted = worker.submit([(Request((1,), 20), gone), (Request((3,), 6), stays)])
    turn.wait(60)
    worker.cancel(submitted[:1])
    go_on.set()
    assert outcome(stays)[0] == list(expected_output((3,), 6))
    worker.close()
    assert len(gone.tokens) == 1 and gone.end.empty()
    assert [inputs.kv_lens.shape[0] for inputs in decoder.steps] == [2, 1, 1, 1, 1, 1]


def test_a_listener_without_an_event_loop_is_cancelled() -> None:
    class Closed(Diary):
        def advanced(self, sequence: TokenSequence) -> None:
            super().advanced(sequence)
            raise RuntimeError("Event loop is closed")

    worker, closed, other = Worker(session()), Closed(), Diary()
    worker.submit([(Request((1,), 9), closed), (Request((1, 3), 4), other)])
    assert outcome(other) == ([4, 8, 0, 0], "length")
    worker.close()
    assert len(closed.tokens) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_thread_leaves_nobody_waiting() -> None:
    class Defective(Diary):
        def advanced(self, sequence: TokenSequence) -> None:
            raise ZeroDivisionError

    worker, other = Worker(session()), Diary()
    worker.submit([(Request((1,), 9), Defective()), (Request((1, 3), 4), other)])
    assert "the engine is closed" in str(outcome(other)[1])
    with pytest.raises(UserError, match="the engine is closed"):
        worker.submit([(Request((1,), 1), Diary())])
    worker.close()
