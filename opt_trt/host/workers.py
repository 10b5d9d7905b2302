"""Work on the items of an iterator in threads: as many items as workers exist, each worker with memory of its own."""

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
    """Memory for a tensor per thread, used again for its next one: fresh pages cost more than what is copied there."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized tensor, valid until the same thread asks for another."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # before the larger one is made
            self._memory = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory[:nbytes].view(dtype).view(shape)


def for_each(items: Iterator[Item], work: Callable[[Item], None], workers: int) -> None:
    """Do `work` for every item, `workers` at a time; no more items than workers exist, and the first failure is raised.

    Items are made one after another: the iterator need not know of threads.
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
                del item  # before the next one is made
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
    """Copying is bound by memory and disk; more threads would only wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
