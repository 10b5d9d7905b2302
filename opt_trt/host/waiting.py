"""Wait for what another process does, by looking: at once at first, then leaving the core to others."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How to look, all in seconds: yielding the core between looks at first, then sleeping, each time twice as long."""

    yielding: float
    first_nap: float
    longest_nap: float
    timeout: float = math.inf


def wait_until(is_so: Callable[[], bool], patience: Patience) -> bool:
    """Look until it is so; False if that takes longer than the timeout."""
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
