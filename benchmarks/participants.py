"""The participants of a benchmark: one model for all, our engines of it, and the processes of peers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from engine import EngineRunner, make_engine
from models import random_model
from peers import PeerVariant
from peers.environment import PeerUnavailable
from peers.process import PeerProcess, converted
from report import OURS

Participant = EngineRunner | PeerProcess


@dataclass(frozen=True)
class Subject:
    """The subject of a run: a shape, a precision, and an existing engine or the flags to build one."""

    shape: str
    precision: str
    engine_dir: Path | None
    build_flags: tuple[str, ...]


def shared_model(shape: str, cache: Path) -> Path:
    """Return the Hugging Face directory with which all participants start; write it if it does not exist."""
    hf = cache / "models" / shape / "hf"
    if not hf.exists():
        unfinished = hf.with_suffix(".unfinished")
        random_model(shape, unfinished)
        unfinished.rename(hf)
    return hf


def ready_peers(choices: list[PeerVariant], hf: Path, cache: Path) -> tuple[dict[PeerVariant, Path], dict[str, str]]:
    """Install peers and convert the model for them; return the models, and the reasons of peers that failed."""
    models, absent = {}, {}
    for choice in choices:
        try:
            models[choice] = converted(choice, hf, cache)
        except PeerUnavailable as why:
            absent[choice.label] = str(why)
    return models, absent


def started_peers(
    models: dict[PeerVariant, Path], cache: Path, absent: dict[str, str], stack: ExitStack
) -> dict[str, PeerProcess]:
    """Start a process for each peer; a peer that cannot open its model goes to `absent`."""
    started = {}
    for choice, model in models.items():
        try:
            process = PeerProcess(choice, model, cache, cache / f"{choice.label.replace(':', '-')}.log")
        except PeerUnavailable as why:
            absent[choice.label] = str(why)
            continue
        stack.callback(process.close)
        started[choice.label] = process
    return started


def engines(subject: Subject, beside_deterministic: bool, hf: Path, work: Path) -> dict[str, Participant]:
    """Return our engine, built under `work` unless one is given, and a deterministic one if it is asked for."""
    made = subject.engine_dir or make_engine(hf, subject.precision, work / OURS, subject.build_flags)
    runners: dict[str, Participant] = {OURS: EngineRunner(made)}
    if beside_deterministic:
        flags = (*subject.build_flags, "--deterministic")
        runners["deterministic"] = EngineRunner(make_engine(hf, subject.precision, work / "deterministic", flags))
    return runners
