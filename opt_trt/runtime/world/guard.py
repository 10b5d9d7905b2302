"""The rank's side of its watching process (`watch`), which ends a rank that hangs and reports one that died."""

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
    """The owner of the watching process: it starts that process, and informs it by writing to shared memory."""

    def __init__(self, name: str, step_timeout: float) -> None:
        self._others_memory = _shared_memory()  # mapped before MPI was initialized, so not MPI's
        board = os.memfd_create("opt_trt")
        os.truncate(board, watch.BOARD_BYTES)
        self._board = mmap.mmap(board, watch.BOARD_BYTES)
        read_end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self.busy()
        # Processes are opened here: once the watching process runs, the rank may have ended, and its id be reused.
        descriptors = (board, os.pidfd_open(os.getpid()), os.pidfd_open(os.getppid()), read_end)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", watch.__file__, name, *map(str, (os.getpid(), step_timeout, *descriptors))],
            pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True,  # the launcher's signals should reach the rank only
        )  # fmt: skip
        for descriptor in descriptors:
            os.close(descriptor)
        self._pass_signals_on()

    def busy(self) -> None:
        """Note that the rank computes, or waits for others in a step: its time is limited from now on."""
        watch.BUSY_SINCE.pack_into(self._board, 0, time.monotonic())

    def idle(self) -> None:
        """Note that the rank waits for work, which may take any time."""
        watch.BUSY_SINCE.pack_into(self._board, 0, 0.0)

    def note_shared_memory(self) -> None:
        """Note which files of shared memory MPI uses here, so that they are removed if this rank is killed."""
        text = "\n".join(sorted(_shared_memory() - self._others_memory)).encode()
        start = watch.BUSY_SINCE.size + watch.PATHS_LENGTH.size
        self._board[start : start + len(text)] = text
        watch.PATHS_LENGTH.pack_into(self._board, watch.BUSY_SINCE.size, len(text))

    def joined(self) -> None:
        """Note that the rank has joined the others: from now on it ends by itself when a signal tells it to."""
        self._tell(watch.JOINED)

    def leave(self) -> None:
        """Note that the rank ends now, in order."""
        self._tell(watch.LEAVING)

    def fail(self) -> None:
        """Note that the rank ends now because of a failure, which it reports itself."""
        self._tell(watch.FAILING)

    def _tell(self, event: int) -> None:
        with suppress(OSError):  # the process may have been killed; the rank must end anyway
            os.write(self._pipe, bytes([event]))

    def _pass_signals_on(self) -> None:
        """Let the C signal handler inform the watching process: Python's handlers do not run in a compiled step."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
        signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)


def _shared_memory() -> set[str]:
    """Return the files of shared memory that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line[line.index(SHARED_MEMORY) :] for line in lines if SHARED_MEMORY in line}
    return {path for path in paths if not path.endswith("(deleted)")}
