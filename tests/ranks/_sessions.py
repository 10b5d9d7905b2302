"""The program that mpirun starts in these tests: sessions that need no engine, with a whole decoder on every rank.

`python -m tests.ranks._sessions --scenario NAME --directory D`: the leader does what the scenario says. Every rank
leaves its process id, its host and the names of its shared memory in D, and what its KV caches hold in the end.
Decoders meet in a barrier at every step, as the ranks of an engine meet in their collectives.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from opt_trt.cli import run_main
from opt_trt.config.flags import flag
from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.host.waiting import Backoff, wait_until
from opt_trt.runtime.follow import Opening, OpenSession, follow, lead
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.ranks import ALONE, Ranks
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession, Session
from opt_trt.runtime.world import World, current_world
from opt_trt.runtime.world.communicator import join_world
from opt_trt.step import StepInputs, StepOutputs
from tests.unit._decoders import SumDecoder, spec

REUSE = Scheduling("max_utilization", 5, True)
PROMPTS = [(5, 6, 7, 8, 9, 10, 11, 12, 13), (5, 6, 7, 8, 9, 10, 3), (4,), (5, 6, 7, 8, 9, 10, 11, 12, 1, 2)]
MIXED = [  # greedy, drawn and searched for, at once
    Request(prompt, 6 + index, sampling=Sampling(num_beams=1 + 2 * (index % 2), min_length=4))
    for index, prompt in enumerate(PROMPTS)
] + [Request((9, 8, 7), 8, sampling=Sampling(top_k=0, top_p=0.9, random_seed=5))]


@dataclass(frozen=True)
class Config:
    """Flags of this program."""

    scenario: str = flag("", "function of this module for the leader, or event for one rank")
    directory: str = flag("", "where ranks leave what the test looks at")
    victim: int = flag(1, "rank that the event happens to")
    log_level: str = flag("info", "as everywhere")


def generate_once(session: Session) -> None:
    """Generate once; only what happens to the decoder is special."""
    generate(session, [Request((1, 2, 3), 20)])
    print("generated", flush=True)


def wait(session: Session) -> None:
    """Generate until the test allows the end."""
    while True:
        generate(session, [Request((1, 2, 3), 20)])


def serve(session: Session) -> None:
    """Do everything that a session can do: batches, streams that share steps, a cancelled request."""
    print([beam.output_ids for result in generate(session, MIXED) for beam in result.beams or (result,)])
    first, second = stream(session, [MIXED[0], MIXED[2]]), stream(session, [MIXED[2]])
    next(first)
    first.cancel(1)
    print([event.token_id for event in second], [event.token_id for event in first], flush=True)


def go_on(session: Session) -> None:
    """Take an interrupt for the end of an answer, as `--interactive` does, and ask again."""
    with suppress(KeyboardInterrupt):
        generate_once(session)
    generate_once(session)


def late(sessions: list[Session]) -> None:
    """Send a request after this process has left the world, as a thread that outlives the main one may do."""
    try:
        generate_once(sessions[0])
    except UserError as error:
        print(f"refused: {error}", flush=True)


SCENARIOS: dict[str, Callable[[Session], None]] = {"wait": wait, "serve": serve, "interrupt": go_on}


def fail() -> None:
    raise UserError("expected a sound decoder, found this one")


def crash() -> None:
    raise ZeroDivisionError("a bug")


def interrupt() -> None:
    raise KeyboardInterrupt


def hang() -> None:
    """Sleep with the interpreter lock, as a compiled program would."""
    ctypes.PyDLL(None).sleep(100)


EVENTS: dict[str, Callable[[], None]] = {  # in the third step of one rank
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": hang,
    "fail": fail,
    "crash": crash,
    "interrupt": interrupt,
}


EARLY_SIGNALS = {  # to one rank while ranks join, and the seconds after which the others do
    "early-term": (signal.SIGTERM, 3.0),
    "early-int": (signal.SIGINT, 3.0),
    "never": (signal.SIGTERM, 100.0),
}


class MeetingDecoder(SumDecoder):
    """A decoder that waits for the others at every step."""

    def __init__(self, world: World, config: Config) -> None:
        super().__init__(spec(num_layers=2, max_seq_len=24, max_batch_size=6))
        self._world = world
        self._event = EVENTS.get(config.scenario) if world.rank == config.victim else None
        self._directory = Path(config.directory)

    def step(self, inputs: StepInputs, kv_cache: list[torch.Tensor]) -> StepOutputs:
        if len(self.steps) == 2:
            note(self._directory, f"host{self._world.rank}", socket.gethostname())
            note(self._directory, f"shared{self._world.rank}", "\n".join(shared_memory()))
            if self._event is not None:
                note(self._directory, "event", str(time.time()))
                self._event()
        if self._world.size > 1:
            from mpi4py import MPI

            MPI.COMM_WORLD.Barrier()
        return super().step(inputs, kv_cache)


def shared_memory() -> set[str]:
    """Return the paths of the shared memory of this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line[line.index("/dev/shm") :] for line in lines if "/dev/shm" in line}


def note(directory: Path, name: str, text: str) -> None:
    """Write a file that is whole once it is there."""
    (directory / f".{name}").write_text(text)
    (directory / f".{name}").rename(directory / name)


def main(config: Config) -> None:
    world, directory = current_world(os.environ), Path(config.directory)
    caches: list[list[torch.Tensor]] = []

    def open_session(opening: Opening, ranks: Ranks) -> Session:
        if config.scenario == "missing" and world.rank == config.victim:
            raise UserError(f"expected {directory}/rank{world.rank}.engine, found nothing there")
        tokens = opening.limit.max_tokens
        limit = KvCacheLimit(None if tokens is None else tokens + 40 * world.rank)  # the leader has the least memory
        session = DecoderSession(MeetingDecoder(world, config), limit, opening.scheduling, ranks)
        for layer in session.executor.kv_cache:
            layer.zero_()
        weakref.finalize(session.executor.kv_cache[0], note, directory, f"freed{len(caches)}-{world.rank}", "")
        caches.append([] if config.scenario == "close" else list(session.executor.kv_cache))
        return session

    note(directory, f"pid{world.rank}", str(os.getpid()))
    act(config, world, open_session)
    torch.save(caches, directory / f"caches{world.rank}.pt")


def close_one(sessions: list[Session], freed: Callable[[], bool]) -> None:
    """Close one of two sessions, go on with the other when the memory of the first is free, close it inside a step.

    The followers do not notice a second close, or a request to a closed session.
    """
    first, second = sessions
    generate_once(first)
    first.close()
    first.close()
    with suppress(UserError):
        generate_once(first)
    assert wait_until(freed, Backoff(0, 0.01, 0.01, timeout=60))
    generate_once(second)
    with join_world(current_world(os.environ)).section():
        second.close()


def join_late(world: World, config: Config) -> None:
    """Tell one rank to end while it waits for the others to join; they come two seconds later, or never."""
    if world.rank == config.victim:
        number = EARLY_SIGNALS[config.scenario][0]  # sent by another process, for MPI holds the interpreter lock
        subprocess.Popen(["sh", "-c", f"sleep 1; kill -{number} {os.getpid()}"])
        note(Path(config.directory), "event", str(time.time() + 1.0))
    else:
        time.sleep(EARLY_SIGNALS[config.scenario][1])


def act(config: Config, world: World, open_session: OpenSession) -> None:
    if config.scenario in EARLY_SIGNALS:
        join_late(world, config)
    if not world.is_leader:
        follow(join_world(world), open_session)
        print("this is printed by a follower")
        return
    sessions: list[Session] = []
    if config.scenario == "late":
        atexit.register(late, sessions)  # before the world is joined, so it runs behind the end of that
    for tokens in (None, 60) if config.scenario in ("serve", "close") else (None,):
        opening = Opening(Path(), KvCacheLimit(tokens), REUSE)
        alone = world.size == 1
        sessions.append(open_session(opening, ALONE) if alone else lead(join_world(world), opening, open_session))
    if config.scenario == "close":
        directory = Path(config.directory)
        close_one(sessions, lambda: all((directory / f"freed0-{rank}").exists() for rank in range(world.size)))
        return
    for session in sessions:
        SCENARIOS.get(config.scenario, generate_once)(session)


if __name__ == "__main__":
    run_main(main, Config)
