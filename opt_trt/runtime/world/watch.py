"""The process beside a rank that says why the rank ended when it can no longer say so itself, or ends it if it hangs.

A process, because compiled steps hold the interpreter lock: no thread of the rank runs while a step waits for another
rank. Run by `guard.Guard` as a script of the standard library alone.
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

BOARD_BYTES = 1 << 16  # shared with the rank: when it became busy, then paths of its shared memory
BUSY_SINCE = struct.Struct("d")  # seconds of CLOCK_MONOTONIC; 0 while it waits for work
PATHS_LENGTH = struct.Struct("I")
LEAVING, FAILING = 0, 255  # bytes on the pipe: the rank ends, and has said why; other bytes are signals that it got
LEAVE_SECONDS = 8.0  # for a rank that leaves to be gone
# Seconds beyond its time until a rank is ended, by its state: it is best named by itself or by those that wait for it,
# which know whom they wait for; of the others, one that does nothing hangs more likely than one that computes.
LATER_SECONDS = {"T": 0.0, "t": 0.0, "R": 5.0}
ASLEEP_LATER_SECONDS = 3.0
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
DOING = {"T": "is stopped", "t": "is stopped", "D": "waits for a disk", "R": "computes or waits for other ranks"}
TOO_LONG = "{doing}: its step has not ended within {seconds:g} s; if steps may take longer, set OPT_TRT_STEP_TIMEOUT"


@dataclass
class Rank:
    """The process that is watched."""

    who: str
    pid: int
    board: mmap.mmap
    step_timeout: float  # seconds; 0 is for ever
    said_all: bool = False  # whoever ends it, or the rank itself, says why
    is_orderly: bool = False  # MPI ends in order, and removes its shared memory
    _leaving_since: float = 0.0
    _stopped_since: float = 0.0
    _ticks: int = 0
    _state: str = "R"

    def hear(self, message: bytes) -> None:
        """Take what came through the pipe."""
        if {LEAVING, FAILING} & set(message):
            self._leaving_since = time.monotonic()
        self.is_orderly |= LEAVING in message
        self.said_all |= self._leaving_since > 0 or bool(STOPS & set(message))

    def look(self) -> str | None:
        """Why the rank has to be ended; None if all is well."""
        now = time.monotonic()
        self._look_at_process(now)
        if self._leaving_since and now - self._leaving_since > LEAVE_SECONDS:
            return "does not end"
        (busy_since,) = BUSY_SINCE.unpack_from(self.board)
        since = min(filter(None, (busy_since, self._stopped_since)), default=now)
        patience = self.step_timeout + LATER_SECONDS.get(self._state, ASLEEP_LATER_SECONDS)
        if self.step_timeout and now - since > patience:
            return TOO_LONG.format(doing=DOING.get(self._state, "sleeps"), seconds=self.step_timeout)
        return None

    def remove_shared_memory(self) -> None:
        """Unlink what the rank did not, as one that was killed, or that MPI joined with no others."""
        (length,) = PATHS_LENGTH.unpack_from(self.board, BUSY_SINCE.size)
        start = BUSY_SINCE.size + PATHS_LENGTH.size
        for path in self.board[start : start + length].decode().splitlines():
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _look_at_process(self, now: float) -> None:
        """Its state as the letter of /proc, but `R` if any thread computed since the last look; when it was stopped."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                state, *numbers = file.read().rpartition(")")[2].split()
        except OSError:  # gone since the poll: the next one sees it
            return
        ticks = int(numbers[10]) + int(numbers[11])
        self._state = "R" if ticks > self._ticks else state
        self._ticks = ticks
        self._stopped_since = (self._stopped_since or now) if self._state in "Tt" else 0.0


def watch(rank: Rank, launcher_pid: int, pipe: int) -> None:
    """Return when the rank has ended, whatever ended it."""
    own, launcher = os.pidfd_open(rank.pid), os.pidfd_open(launcher_pid)
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
            reason = "was killed (by hand, or because memory ran out), or crashed in compiled code or in MPI"
        elif launcher in ready:
            reason = "has lost its launcher"
        else:
            reason = rank.look()
    if not rank.said_all:
        say(f"error: {rank.who} {reason}")
    signal.pidfd_send_signal(own, signal.SIGKILL)


def say(message: str) -> None:
    """One line to stderr, which nobody may read any longer."""
    with suppress(OSError):
        os.write(2, f"{message}\n".encode())


def main() -> None:
    """`watch.py WHO PID LAUNCHER_PID BOARD PIPE STEP_TIMEOUT`; board and pipe are descriptors."""
    who, pid, launcher_pid, board, pipe, step_timeout = sys.argv[1:]
    rank = Rank(who, int(pid), mmap.mmap(int(board), BOARD_BYTES), float(step_timeout))
    with suppress(ProcessLookupError):  # the rank is gone
        watch(rank, int(launcher_pid), int(pipe))
    if not rank.is_orderly:
        rank.remove_shared_memory()


if __name__ == "__main__":
    main()
