"""Keep the progress bars of other libraries out of logs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def quiet_unless_terminal(
    is_enabled: bool, disable: Callable[[], object], enable: Callable[[], object]
) -> Iterator[None]:
    """Switch a library's progress bars off during the block, unless it prints to a terminal, and then on again."""
    if sys.stderr.isatty() or not is_enabled:
        yield
        return
    disable()
    try:
        yield
    finally:
        enable()
