"""The ranks of a world, joined by MPI: plans and objects from the leader, agreement, and a common end."""

from __future__ import annotations

import atexit
import functools
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from opt_trt.errors import EXIT_BUG, EXIT_TERMINATED, EXIT_USER_ERROR, LEADER_FIRST_SECONDS, UserError
from opt_trt.host.waiting import Patience, wait_until
from opt_trt.runtime.world import World
from opt_trt.runtime.world.guard import Guard

LEADER = 0
STEP_TIMEOUT = "OPT_TRT_STEP_TIMEOUT"  # seconds a step may take
DEFAULT_STEP_TIMEOUT = "1800"  # 8192 prompt tokens of 66B take 1400 s on four ranks of 200 GFLOP/s each
# Between two steps the leader schedules and samples; whoever waits longer sleeps.
PATIENCE = Patience(yielding=5e-3, first_nap=1e-4, longest_nap=5e-3)


class Communicator:
    """This rank's end of the world. MPI is initialized once a process, so there is one; see `join_world`.

    Between two collective sections followers wait in `receive`. Whatever goes wrong inside a section leaves the others
    waiting, so it ends all of them; whatever goes wrong on the leader between sections unwinds there, and the followers
    are told to end when its process does.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.num_sessions = 0  # opened on all ranks
        self._who = f"rank {world.rank} on {socket.gethostname()}"
        self.step_timeout = step_timeout(os.environ)
        self._guard = Guard(self._who, self.step_timeout)
        try:
            self._mpi = _initialized(world)
        except UserError:
            self._guard.note_shared_memory()
            self._guard.fail()
            raise
        self._ranks = self._mpi.COMM_WORLD.Dup()
        self._lock = threading.Lock()  # sections are entered one at a time
        self._postponed: deque[bytes] = deque()  # messages for when nobody is in a section
        self._is_inside = False  # a section; for good when a signal left it
        self._has_ended = False
        self._ranks.Barrier()
        self._guard.note_shared_memory()
        self._guard.idle()
        atexit.register(self._leave)

    def send(self, message: bytes) -> None:
        """Give every follower a message, inside a section."""
        requests = [self._ranks.Isend((message, self._mpi.BYTE), rank) for rank in range(1, self.world.size)]
        self._mpi.Request.Waitall(requests)

    def send_soon(self, message: bytes) -> None:
        """Give every follower a message of its own, now or after the section that is being left; from any thread.

        Never waits for that, so a finalizer that interrupts a section may call this, too.
        """
        self._postponed.append(message)
        if self._lock.acquire(blocking=False):
            try:
                self._send_postponed()
            finally:
                self._lock.release()

    def receive(self) -> bytearray:
        """The next message of the leader; empty when the world ends."""
        message = self._wait()
        self._has_ended = not message
        return message

    def minimum(self, value: int) -> int:
        """The least of all ranks' values, inside a section."""
        return int(self._ranks.allreduce(value, self._mpi.MIN))

    @contextmanager
    def section(self) -> Iterator[None]:
        """Where ranks wait for one another: an exception ends the world, and so does taking too long.

        `UserError` in a thread that goes on when this process has left the world.
        """
        with self._lock:
            if self._has_ended:
                raise UserError("the ranks have ended with the main thread; wait for requests before that")
            if self._is_inside:  # the others are still in that step: sums of two different ones would meet
                self.fail(
                    UserError("a step was interrupted, and ranks cannot go on from the middle of it; start again")
                )
            self._send_postponed()
            self._guard.busy()
            self._is_inside = True
            try:
                yield
            except Exception as error:
                self.fail(error)
            self._is_inside = False
            self._guard.idle()
            self._send_postponed()

    def fail(self, error: Exception) -> NoReturn:
        """End all ranks, saying which one failed and why, with exit code 2 where a person can fix it."""
        is_users = isinstance(error, UserError | OSError)
        if not self.world.is_leader:
            time.sleep(LEADER_FIRST_SECONDS)
        text = "" if is_users else "".join(traceback.format_exception(error))
        kind = "" if is_users else f"{type(error).__name__}: "
        os.write(2, f"{text}error: {self._who}: {kind}{error}\n".encode())  # in one piece: others write there, too
        self._abort(EXIT_USER_ERROR if is_users else EXIT_BUG)

    def _abort(self, code: int) -> NoReturn:
        with suppress(OSError):  # nobody may read it any longer; stderr keeps nothing back
            sys.stdout.flush()
        self._guard.fail()
        self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def _leave(self) -> None:
        """End with the process: the leader ends the followers, unless they wait for it inside a section."""
        with self._lock:  # another thread may be in a step
            if self.world.is_leader and not self._is_inside:
                self.send(b"")
                self._has_ended = True
        if not self._has_ended:
            self._abort(EXIT_TERMINATED)
        self._guard.leave()
        self._mpi.Finalize()

    def _send_postponed(self) -> None:
        """Between sections; once this process has left the world, or a section for good, nobody listens any more."""
        while self._postponed:
            message = self._postponed.popleft()
            if not (self._is_inside or self._has_ended):
                self.send(message)

    def _wait(self) -> bytearray:
        status = self._mpi.Status()
        wait_until(lambda: self._ranks.Iprobe(LEADER, status=status), PATIENCE)
        message = bytearray(status.Get_count(self._mpi.BYTE))
        self._ranks.Recv((message, self._mpi.BYTE), LEADER)
        return message


@functools.cache
def join_world(world: World) -> Communicator:
    """Join the other ranks: every process of the world does, once; `UserError` if this launcher does not join them."""
    return Communicator(world)


def step_timeout(environ: Mapping[str, str]) -> float:
    """Seconds a step may take; 0 is for ever."""
    text = environ.get(STEP_TIMEOUT, DEFAULT_STEP_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise UserError(f"{STEP_TIMEOUT} must be seconds, or 0 to wait for ever, found {text!r}")
    return seconds


def _initialized(world: World) -> Any:
    """The module of MPI, initialized; a rank that waits gives way, or one that shares its core takes milliseconds."""
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    from mpi4py import MPI  # here: importing it initializes, and a world of one needs no MPI

    found = MPI.COMM_WORLD.Get_size()
    if found != world.size:
        raise UserError(
            f"{world.launcher} started {world.size} processes, but MPI joined {found}; start them with the mpirun of "
            f"the MPI in use ({MPI.Get_library_version().split(',')[0]}): {sys.prefix}/bin/mpirun -n {world.size}"
        )
    return MPI
