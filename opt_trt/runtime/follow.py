"""Open each session on all ranks, and repeat the steps of the leader's session on the others."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.scheduling import Scheduling
from opt_trt.runtime.ranks import INDEX_BYTES, Ranks, SessionRanks, index_bytes
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session
from opt_trt.runtime.world.communicator import Communicator

OPEN = -1  # stands in place of a session's index: open another session


@dataclass(frozen=True)
class Opening:
    """The engine to open, and the way to open it. Both are the same on all ranks, whatever their own flags say."""

    engine_dir: Path
    limit: KvCacheLimit
    scheduling: Scheduling
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    fingerprint: str = ""  # that of the engine that the leader found there


OpenSession = Callable[[Opening, Ranks], Session]


def lead(communicator: Communicator, opening: Opening, open_session: OpenSession) -> Session:
    """Open a session on all ranks; from then on they repeat the leader's steps."""
    with communicator.section():
        communicator.send(index_bytes(OPEN) + pickle.dumps(opening))
        session = open_session(opening, SessionRanks(communicator, communicator.num_sessions))
        communicator.num_sessions += 1
    return session


def follow(communicator: Communicator, open_session: OpenSession) -> None:
    """Open, step and close the sessions that the leader does, until the leader ends."""
    sessions: dict[int, Session] = {}
    while message := communicator.receive():
        content = memoryview(message)[INDEX_BYTES:]
        index = int.from_bytes(message[:INDEX_BYTES], "little", signed=True)
        with communicator.section():
            if index == OPEN:
                ranks = SessionRanks(communicator, communicator.num_sessions)
                sessions[communicator.num_sessions] = open_session(pickle.loads(content), ranks)
                communicator.num_sessions += 1
            elif content:
                sessions[index].obey(content)
            else:  # closed
                sessions.pop(index).close()
