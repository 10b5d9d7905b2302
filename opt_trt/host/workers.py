"""Threads of a command: workers that share an iterator, memory that each of them reuses, one thread for torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock, local
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Scratch(local):
    """Memory for one tensor per thread. It is reused, because the first use of a new page costs more than a copy."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialized tensor, valid until the same thread asks for another."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # frees the old memory before the larger one is allocated
            self._memory = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory[:nbytes].view(dtype).view(shape)


def for_each(items: Iterator[Item], work: Callable[[Item], None], workers: int) -> None:
    """Call `work` for every item in `workers` threads; raise the first failure.

    At most `workers` items are in memory. They are taken one after another, so the iterator need not be thread-safe.
    """
    taking, stop = Lock(), Event()

    def drain() -> None:
        try:
            while not stop.is_set():
                with taking:
                    item = next(items, None)
                if item is None:
                    return
                work(item)
                del item  # frees it before the next one is made
        except BaseException:
            stop.set()
            raise

    if workers == 1:
        drain()
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            running = [pool.submit(drain) for _ in range(workers)]
            for failed in wait(running, return_when=FIRST_EXCEPTION).done:
                failed.result()
        finally:
            stop.set()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: memory and disk limit a copy, and on a busy machine threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
