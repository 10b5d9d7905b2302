"""The ranks of a world, joined by MPI: messages from the leader, agreement on numbers, and a common end."""

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
from opt_trt.host.extras import missing_extra
from opt_trt.host.interrupts import deferred_interrupts
from opt_trt.host.waiting import Backoff, wait_until
from opt_trt.runtime.world import World
from opt_trt.runtime.world.guard import Guard

LEADER = 0
STEP_TIMEOUT = "OPT_TRT_STEP_TIMEOUT"  # seconds a step may take
DEFAULT_STEP_TIMEOUT = "1800"  # 8192 prompt tokens of 66B take 1400 s on four ranks of 200 GFLOP/s each
# Between two steps the leader schedules and samples; a rank that waits longer than that sleeps.
BACKOFF = Backoff(yielding=5e-3, first_nap=1e-4, longest_nap=5e-3)


class Communicator:
    """The connection of this rank to the others. A process has one, because MPI is initialized once; see `join_world`.

    Followers wait in `receive` between two collective sections. A failure inside a section would leave the other ranks
    waiting, so it ends all of them. A failure on the leader between sections is an ordinary exception there; followers
    end when the leader's process does.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.num_sessions = 0  # opened on all ranks
        self._name = f"rank {world.rank} on {socket.gethostname()}"
        self.step_timeout = step_timeout(os.environ)
        self._guard = Guard(self._name, self.step_timeout)
        self._lock = threading.Lock()  # one section at a time
        self._postponed: deque[bytes] = deque()  # messages to send once this rank is in no section
        self._is_inside = False  # in a section; stays true if a signal interrupted the section
        self._has_ended = False
        # A rank that left in the middle of joining would leave the others waiting, and itself wait for them at its end.
        with deferred_interrupts():
            self._join(world)

    def _join(self, world: World) -> None:
        try:
            self._mpi = _initialized(world)
        except UserError:
            self._guard.note_shared_memory()
            self._guard.fail()
            raise
        self._ranks = self._mpi.COMM_WORLD.Dup()
        self._ranks.Barrier()
        self._guard.note_shared_memory()
        self._guard.joined()
        self._guard.idle()
        atexit.register(self._leave)

    def send(self, message: bytes) -> None:
        """Send every follower a message, inside a section."""
        requests = [self._ranks.Isend((message, self._mpi.BYTE), rank) for rank in range(1, self.world.size)]
        self._mpi.Request.Waitall(requests)

    def send_soon(self, message: bytes) -> None:
        """Send every follower a message now or after the present section; any thread may call this.

        It never waits, so that a finalizer that interrupts a section may call it.
        """
        self._postponed.append(message)
        if self._lock.acquire(blocking=False):
            try:
                self._send_postponed()
            finally:
                self._lock.release()

    def receive(self) -> bytearray:
        """Return the next message of the leader; empty when the world ends."""
        message = self._wait()
        self._has_ended = not message
        return message

    def minimum(self, value: int) -> int:
        """Return the smallest value over all ranks, inside a section."""
        return int(self._ranks.allreduce(value, self._mpi.MIN))

    @contextmanager
    def section(self) -> Iterator[None]:
        """Return a context in which ranks wait for one another: an exception, or taking too long, ends all ranks.

        `UserError` in a thread that still runs after this process has left the world.
        """
        with self._lock:
            if self._has_ended:
                raise UserError("the ranks have ended with the main thread; wait for requests before that")
            if self._is_inside:  # the others are still in that step, and would add its sums to those of this one
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
        """End all ranks and say which rank failed and why; the exit code is 2 if the user can fix it."""
        is_users = isinstance(error, UserError | OSError)
        if not self.world.is_leader:
            time.sleep(LEADER_FIRST_SECONDS)
        text = "" if is_users else "".join(traceback.format_exception(error))
        kind = "" if is_users else f"{type(error).__name__}: "
        os.write(2, f"{text}error: {self._name}: {kind}{error}\n".encode())  # one write, because other ranks write, too
        self._abort(EXIT_USER_ERROR if is_users else EXIT_BUG)

    def _abort(self, code: int) -> NoReturn:
        with suppress(OSError):  # its reader may have ended; stderr is not buffered
            sys.stdout.flush()
        self._guard.fail()
        self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def _leave(self) -> None:
        """Leave the world at the end of the process: the leader ends the followers, or aborts an unfinished section."""
        with self._lock:  # another thread may be in a step
            if self.world.is_leader and not self._is_inside:
                self.send(b"")
                self._has_ended = True
        if not self._has_ended:
            self._abort(EXIT_TERMINATED)
        self._guard.leave()
        self._mpi.Finalize()

    def _send_postponed(self) -> None:
        """Send postponed messages between sections; drop them if this process left the world or broke a section."""
        while self._postponed:
            message = self._postponed.popleft()
            if not (self._is_inside or self._has_ended):
                self.send(message)

    def _wait(self) -> bytearray:
        status = self._mpi.Status()
        wait_until(lambda: self._ranks.Iprobe(LEADER, status=status), BACKOFF)
        message = bytearray(status.Get_count(self._mpi.BYTE))
        self._ranks.Recv((message, self._mpi.BYTE), LEADER)
        return message


@functools.cache
def join_world(world: World) -> Communicator:
    """Join the other ranks. Every process of the world calls this. `UserError` if the launcher does not join them."""
    return Communicator(world)


def step_timeout(environ: Mapping[str, str]) -> float:
    """Return the seconds a step may take; 0 is no limit."""
    text = environ.get(STEP_TIMEOUT, DEFAULT_STEP_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise UserError(f"{STEP_TIMEOUT} must be seconds, or 0 to wait for ever, found {text!r}")
    return seconds


def _initialized(world: World) -> Any:
    """Return the module of MPI, initialized so that a waiting rank yields its core to other ranks."""
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    try:
        from mpi4py import MPI  # here, because importing it initializes MPI, which a world of one does not need
    except (ImportError, RuntimeError) as error:  # mpi4py raises RuntimeError without an MPI
        raise missing_extra(error, "mpi") from error
    found = MPI.COMM_WORLD.Get_size()
    if found != world.size and world.is_claimed:
        raise UserError(
            f"WORLD_SIZE={world.size} and RANK={world.rank} are set, but MPI joined {found}: unset WORLD_SIZE RANK to "
            f"run one process, or start {world.size} with {sys.prefix}/bin/mpirun -n {world.size}"
        )
    if found != world.size:
        raise UserError(
            f"{world.launcher} started {world.size} processes, but MPI joined {found}; start them with the mpirun of "
            f"the MPI in use ({MPI.Get_library_version().split(',')[0]}): {sys.prefix}/bin/mpirun -n {world.size}"
        )
    return MPI
