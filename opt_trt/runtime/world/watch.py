"""The process that watches a rank: it reports why the rank ended if the rank cannot, and ends a rank that hangs.

It is a process because compiled steps hold the interpreter lock: no thread of the rank runs while a step waits for
another rank. `guard.Guard` runs it as a script that uses the standard library alone.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

BOARD_BYTES = 1 << 16  # shared with the rank: the time it became busy, then the paths of its shared memory
BUSY_SINCE = struct.Struct("d")  # seconds of CLOCK_MONOTONIC; 0 while it waits for work
PATHS_LENGTH = struct.Struct("I")
# Bytes on the pipe: it ends in order, has joined the others, or has reported a failure; others are signals.
LEAVING, JOINED, FAILING = 0, 254, 255
# Seconds until a rank must be gone after it has said that it ends. After a failure all ranks should end soon; an
# orderly end of MPI takes more than ten seconds on a busy machine.
END_SECONDS = {FAILING: 8.0, LEAVING: 120.0}
# Seconds beyond its time until a rank is ended, by its state in /proc. The rank that hangs should be named, not those
# that wait for it. A rank that sleeps hangs more likely than one that computes, so ranks that compute get longer.
LATER_SECONDS = {"T": 0.0, "t": 0.0, "R": 5.0}
ASLEEP_LATER_SECONDS = 3.0
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
STOP_SECONDS = 10.0  # a rank that ends so soon after such a signal needs no report; one that goes on may fail later
DOING = {"T": "is stopped", "t": "is stopped", "D": "waits for a disk", "R": "computes or waits for other ranks"}
KILLED = "was killed (by hand, or because memory ran out), or crashed in compiled code or in MPI"
TOO_LONG = "{doing}: its step has not ended within {seconds:g} s; if steps may take longer, set OPT_TRT_STEP_TIMEOUT"


@dataclass
class Rank:
    """The process that is watched."""

    name: str
    pid: int
    board: mmap.mmap
    step_timeout: float  # seconds; 0 is no limit
    is_orderly: bool = False  # MPI ends in order, and removes its shared memory
    _has_joined: bool = False  # the other ranks
    _has_failed: bool = False  # and reports why
    _gone_by: float = 0.0  # the time by which it must have ended
    _told_to_stop: float = 0.0  # the time of the last signal to end
    _stopped_since: float = 0.0
    _ticks: int = 0
    _state: str = "R"

    def hear(self, message: bytes) -> None:
        """Take a message from the pipe."""
        if JOINED in message:
            self._has_joined, self._gone_by = True, 0.0
        for event in END_SECONDS.keys() & set(message):
            self._gone_by = time.monotonic() + END_SECONDS[event]
        if STOPS & set(message):
            self._told_to_stop = time.monotonic()
            if not self._has_joined:  # it may wait in MPI for ranks that never come
                self._gone_by = self._told_to_stop + END_SECONDS[FAILING]
        self.is_orderly |= LEAVING in message
        self._has_failed |= FAILING in message

    def explains_itself(self) -> bool:
        """Return whether the end of the rank needs no report: the rank reports it, or a signal told it to end."""
        since = self._told_to_stop
        return self._has_failed or (since > 0 and time.monotonic() - since < STOP_SECONDS)

    def look(self) -> str | None:
        """Return why the rank has to be ended; None if all is well."""
        now = time.monotonic()
        self._look_at_process(now)
        if self._gone_by and now > self._gone_by:
            return "does not end"
        (busy_since,) = BUSY_SINCE.unpack_from(self.board)
        since = min(filter(None, (busy_since, self._stopped_since)), default=now)
        patience = self.step_timeout + LATER_SECONDS.get(self._state, ASLEEP_LATER_SECONDS)
        if self.step_timeout and now - since > patience:
            return TOO_LONG.format(doing=DOING.get(self._state, "sleeps"), seconds=self.step_timeout)
        return None

    def remove_shared_memory(self) -> None:
        """Unlink shared memory that the rank left behind: it was killed, or MPI joined it with no others."""
        (length,) = PATHS_LENGTH.unpack_from(self.board, BUSY_SINCE.size)
        start = BUSY_SINCE.size + PATHS_LENGTH.size
        for path in self.board[start : start + length].decode().splitlines():
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _look_at_process(self, now: float) -> None:
        """Read its state from /proc, or `R` if a thread computed since the last look; note when it was stopped."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                state, *numbers = file.read().rpartition(")")[2].split()
        except OSError:  # it has ended since the poll: the next poll sees it
            return
        ticks = int(numbers[10]) + int(numbers[11])
        self._state = "R" if ticks > self._ticks else state
        self._ticks = ticks
        self._stopped_since = (self._stopped_since or now) if self._state in "Tt" else 0.0


def watch(rank: Rank, own: int, launcher: int, pipe: int) -> None:
    """Return when the rank has ended, whatever ended it; `own` and `launcher` are descriptors of the processes."""
    poller = select.poll()
    for descriptor in (own, launcher, pipe):
        poller.register(descriptor, select.POLLIN)
    pause_ms = 1000 * min(1.0, (rank.step_timeout or 4.0) / 4)
    reason = None
    while reason is None:
        ready = {descriptor for descriptor, _ in poller.poll(pause_ms)}
        if pipe in ready:
            message = os.read(pipe, 4096)
            rank.hear(message)
            if not message:  # closed
                poller.unregister(pipe)
        if own in ready:
            reason = "" if rank.is_orderly else KILLED
        elif launcher in ready:
            reason = "has lost its launcher"
        else:
            reason = rank.look()
    if reason and not rank.explains_itself():
        say(f"error: {rank.name} {reason}")
    with suppress(ProcessLookupError):  # it has ended already
        signal.pidfd_send_signal(own, signal.SIGKILL)


def say(message: str) -> None:
    """Print one line to stderr, whose reader may have ended."""
    with suppress(OSError):
        os.write(2, f"{message}\n".encode())


def main() -> None:
    """Run `watch.py NAME PID STEP_TIMEOUT BOARD OWN LAUNCHER PIPE`; the last four are descriptors."""
    name, pid, step_timeout, board, *descriptors = sys.argv[1:]
    rank = Rank(name, int(pid), mmap.mmap(int(board), BOARD_BYTES), float(step_timeout))
    watch(rank, *map(int, descriptors))
    if not rank.is_orderly:
        rank.remove_shared_memory()


if __name__ == "__main__":
    main()
