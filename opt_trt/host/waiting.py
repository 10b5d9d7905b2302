"""Poll for something that another process does: without a pause at first, then with longer and longer pauses."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """The schedule of a poll, in seconds: it yields the core between looks at first, then sleeps longer each time."""

    yielding: float
    first_nap: float
    longest_nap: float
    timeout: float = math.inf


def wait_until(is_so: Callable[[], bool], patience: Backoff) -> bool:
    """Poll until `is_so` returns True; return False if that takes longer than the timeout."""
    started, nap = time.monotonic(), patience.first_nap
    while not is_so():
        waited = time.monotonic() - started
        if waited > patience.timeout:
            return False
        if waited < patience.yielding:
            os.sched_yield()
        else:
            time.sleep(nap)
            nap = min(2 * nap, patience.longest_nap)
    return True
