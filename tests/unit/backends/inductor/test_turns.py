"""Threads that compile take turns with Inductor's own code, and a measurement has the machine to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Barrier, Event

import pytest

from opt_trt.backends.inductor.compiler.turns import Turns

LONG = 30  # seconds after which a thread that waits for ever fails its test


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


def compile_in(turns: Turns, compiler: Callable[[], object]) -> None:
    """What a thread does that compiles a program."""
    with turns.own_code(), turns.compiler():
        compiler()


def test_compilers_run_side_by_side(pool: ThreadPoolExecutor) -> None:
    turns, meeting = Turns(), Barrier(3)
    for done in [pool.submit(compile_in, turns, lambda: meeting.wait(LONG)) for _ in range(3)]:
        done.result(LONG)


def test_own_code_is_one_threads_at_a_time(pool: ThreadPoolExecutor) -> None:
    turns, inside, most = Turns(), [], []

    def code() -> None:
        with turns.own_code():
            for _ in range(20):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                with turns.compiler():  # another thread's turn: this one waits for its own to come again
                    pass

    for done in [pool.submit(code) for _ in range(3)]:
        done.result(LONG)
    assert max(most) == 1 and len(most) == 60


def test_a_measurement_waits_for_what_runs_and_holds_back_the_rest(pool: ThreadPoolExecutor) -> None:
    turns, started, may_end, seen = Turns(), Event(), Event(), []

    def long_compiler() -> None:
        started.set()
        assert may_end.wait(LONG)
        seen.append("first compiler")

    first = pool.submit(compile_in, turns, long_compiler)
    assert started.wait(LONG)
    pool.submit(may_end.set)
    with turns.quiet():
        seen.append("measurement")
        later = pool.submit(compile_in, turns, lambda: seen.append("second compiler"))
        with pytest.raises(TimeoutError):
            later.result(0.05)
    for done in (first, later):
        done.result(LONG)
    assert seen == ["first compiler", "measurement", "second compiler"]


def test_no_compiler_starts_after_the_end(pool: ThreadPoolExecutor) -> None:
    turns, ran = Turns(), []
    with turns.quiet():
        held = pool.submit(compile_in, turns, lambda: ran.append("held"))
        turns.end()
    with pytest.raises(CancelledError):
        held.result(LONG)
    with pytest.raises(CancelledError):
        compile_in(turns, lambda: ran.append("late"))
    assert ran == []
    with turns.own_code():  # no thread keeps the turn
        pass


def test_a_compiler_that_fails_gives_its_turn_back() -> None:
    turns = Turns()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            compile_in(turns, lambda: 1 // 0)
    with turns.quiet():
        pass


def test_compilers_of_others_need_no_turn(pool: ThreadPoolExecutor) -> None:
    """Torch's may be used by other threads of the process meanwhile."""

    def others() -> str:
        with turns.compiler():
            return "compiled"

    turns = Turns()
    with turns.own_code():
        assert pool.submit(others).result(LONG) == "compiled"
