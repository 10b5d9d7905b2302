"""Ctrl-C is delivered after a block that would lose it."""

from __future__ import annotations

import signal
import threading

import pytest

from opt_trt.host.interrupts import ASK_TO_END, deferred_interrupts


class Asked(Exception):
    pass


@pytest.fixture(autouse=True)
def handlers():
    def ask(number, _):
        raise Asked(number)

    before = {number: signal.signal(number, ask) for number in ASK_TO_END}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASK_TO_END)
def test_a_signal_comes_at_the_end_and_once(number):
    reached = False
    with pytest.raises(Asked, match=str(int(number))), deferred_interrupts():
        signal.raise_signal(number)
        signal.raise_signal(number)
        reached = True
    assert reached
    with pytest.raises(Asked):  # as before, outside the block
        signal.raise_signal(number)


def test_a_failure_of_what_is_inside_is_told_where_nobody_asked():
    with pytest.raises(ZeroDivisionError), deferred_interrupts():
        raise ZeroDivisionError


def test_a_failure_after_a_signal_is_the_signals():
    with pytest.raises(Asked), deferred_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("what C made of it")


def test_other_threads_go_on_without_it():
    done = []

    def inside():
        with deferred_interrupts():
            done.append(True)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert done
