"""Backends: each builds engines from checkpoints and runs them. One folder per backend, one table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from opt_trt.backends.identity import identify
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.runtime.follow import Opening, follow, lead
from opt_trt.runtime.ranks import ALONE, Ranks
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session
from opt_trt.runtime.world import World, current_world
from opt_trt.runtime.world.communicator import join_world

# In the order `--backend auto` tries them; imported on demand, so that optional packages stay optional.
BACKENDS = {
    "tensorrt_llm": "opt_trt.backends.trtllm",
    "tensorrt": "opt_trt.backends.tensorrt",
    "inductor": "opt_trt.backends.inductor",
}
FOR_A_GPU = ("tensorrt",)  # `auto` does not even name these unless the engine is for a GPU, and this machine has it


@dataclass(frozen=True)
class Chosen:
    """The backend to build with, and why earlier ones in the table were not taken ("" if there are none)."""

    name: str
    passed_over: str


class Backend(Protocol):
    """The functions of a backend's module."""

    def missing(self) -> str | None:
        """Return what must be installed before this backend can build, or None."""
        ...

    def machine(self) -> tuple[str, ...]:
        """Return the properties of this machine that an engine built here depends on; none if none can be built."""
        ...

    def build(self, checkpoint: Checkpoint, config: BuildConfig, out: Path) -> str:
        """Write the engine's files into the empty directory `out`; with `config.dry_run` print the plan instead.

        Return what to print once the engine is in its place: a reader of stdout that has gone must not undo the build.
        """
        ...

    def open(self, opening: Opening, ranks: Ranks) -> Session:
        """Open this rank's part of an engine this backend built."""
        ...


def load_backend(name: str) -> Backend:
    """Import the backend's module."""
    return import_module(BACKENDS[name])


def choose_backend(name: str, device: str | None = None) -> Chosen:
    """Return the backend of that name, or for `auto` the first that can build; `UserError` says what to install.

    `device` is what `--device` asked for.
    """
    lacking: dict[str, str] = {}
    for candidate in _considered(device) if name == "auto" else (name,):
        missing = load_backend(candidate).missing()
        if missing is None:
            return Chosen(candidate, "; ".join(f"{other}: {why}" for other, why in lacking.items()))
        lacking[candidate] = missing
    last_first = reversed(lacking.items())  # the backend for any machine
    raise UserError("; ".join(f"backend {other}: {why}" for other, why in last_first))


def _considered(device: str | None) -> list[str]:
    """Return the backends that `auto` tries."""
    return [name for name in BACKENDS if name not in FOR_A_GPU or (device == "cuda" and load_backend(name).machine())]


def machine() -> list[tuple[str, ...]]:
    """Return the properties of this machine that engines depend on, a row per backend: equal rows, equal engines."""
    return [load_backend(name).machine() for name in BACKENDS]


def open_engine(
    engine_dir: Path,
    limit: KvCacheLimit,
    scheduling: Scheduling | None = None,
    options: RuntimeOptions | None = None,
) -> Session:
    """Open a session on an engine directory, with the backend that built it. The leader opens it on all ranks."""
    built, world = identify(engine_dir), current_world(os.environ)
    world.require(built.world_size)
    opening = Opening(engine_dir, limit, scheduling or Scheduling(), options or RuntimeOptions(), built.fingerprint)
    if world.size == 1:
        return open_rank(opening, ALONE)
    return lead(join_world(world), opening, open_rank)


def follow_leader(world: World) -> None:
    """Run this rank of all engines that the leader opens, until the leader ends."""
    follow(join_world(world), open_rank)


def open_rank(opening: Opening, ranks: Ranks) -> Session:
    """Open this rank's part of a session; `UserError` if the engine found here is not the leader's."""
    built = identify(opening.engine_dir)
    if built.fingerprint != opening.fingerprint:
        raise UserError(
            f"expected the engine of rank 0 in {opening.engine_dir}, found another one; copy its whole directory to "
            "every host, or share it"
        )
    if built.backend not in BACKENDS:
        raise UserError(
            f"{opening.engine_dir} was built by backend {built.backend!r}, known are {', '.join(BACKENDS)}; "
            "build it again"
        )
    return load_backend(built.backend).open(opening, ranks)
