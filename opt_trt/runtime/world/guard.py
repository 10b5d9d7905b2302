"""The rank's side of the process beside it (`watch`), which ends a rank that hangs and speaks for one that died."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from opt_trt.errors import EXIT_TERMINATED
from opt_trt.runtime.world import watch

SHARED_MEMORY = "/dev/shm/"


class Guard:
    """Starts the watching process, and keeps it informed at the cost of a store to shared memory."""

    def __init__(self, who: str, step_timeout: float) -> None:
        self._others_memory = _shared_memory()  # mapped before MPI was: the user's own
        board = os.memfd_create("opt_trt")
        os.truncate(board, watch.BOARD_BYTES)
        self._board = mmap.mmap(board, watch.BOARD_BYTES)
        read_end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self.busy()
        # Processes are opened here: when the watching one has started, the rank may be gone, and its number another's.
        descriptors = (board, os.pidfd_open(os.getpid()), os.pidfd_open(os.getppid()), read_end)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", watch.__file__, who, *map(str, (os.getpid(), step_timeout, *descriptors))],
            pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True,  # the launcher's signals are for the rank
        )  # fmt: skip
        for descriptor in descriptors:
            os.close(descriptor)
        self._pass_signals_on()

    def busy(self) -> None:
        """The rank computes, or waits for others in a step: its time is limited from now on."""
        watch.BUSY_SINCE.pack_into(self._board, 0, time.monotonic())

    def idle(self) -> None:
        """The rank waits for work, as long as it takes."""
        watch.BUSY_SINCE.pack_into(self._board, 0, 0.0)

    def note_shared_memory(self) -> None:
        """Remember which files of shared memory MPI uses here, to be removed if this rank is killed."""
        text = "\n".join(sorted(_shared_memory() - self._others_memory)).encode()
        start = watch.BUSY_SINCE.size + watch.PATHS_LENGTH.size
        self._board[start : start + len(text)] = text
        watch.PATHS_LENGTH.pack_into(self._board, watch.BUSY_SINCE.size, len(text))

    def leave(self) -> None:
        """The rank ends now, in order."""
        self._tell(watch.LEAVING)

    def fail(self) -> None:
        """The rank ends now and has said why, or is about to."""
        self._tell(watch.FAILING)

    def _tell(self, event: int) -> None:
        with suppress(OSError):  # the process may have been killed; the rank must end all the same
            os.write(self._pipe, bytes([event]))

    def _pass_signals_on(self) -> None:
        """Let the C handler of signals tell the process: in a compiled step no handler in Python runs."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
        signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)


def _shared_memory() -> set[str]:
    """Files of shared memory that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line[line.index(SHARED_MEMORY) :] for line in lines if SHARED_MEMORY in line}
    return {path for path in paths if not path.endswith("(deleted)")}
