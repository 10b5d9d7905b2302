"""Who takes part: the model everybody starts from, engines of ours made of it, processes of peers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from engine import EngineRunner, make_engine
from models import random_model
from peers import Choice
from peers.environment import PeerUnavailable
from peers.process import PeerProcess, converted
from report import OURS

Participant = EngineRunner | PeerProcess


@dataclass(frozen=True)
class Subject:
    """What is measured: a shape and a precision, an engine that exists or flags to build one with."""

    shape: str
    precision: str
    engine_dir: Path | None
    build_flags: tuple[str, ...]


def shared_model(shape: str, cache: Path) -> Path:
    """The Hugging Face directory everybody starts from, written once."""
    hf = cache / "models" / shape / "hf"
    if not hf.exists():
        unfinished = hf.with_suffix(".unfinished")
        random_model(shape, unfinished)
        unfinished.rename(hf)
    return hf


def ready_peers(choices: list[Choice], hf: Path, cache: Path) -> tuple[dict[Choice, Path], dict[str, str]]:
    """The model of each peer that can be installed and convert it; the reason of each that cannot."""
    models, absent = {}, {}
    for choice in choices:
        try:
            models[choice] = converted(choice, hf, cache)
        except PeerUnavailable as why:
            absent[choice.label] = str(why)
    return models, absent


def started_peers(
    models: dict[Choice, Path], cache: Path, absent: dict[str, str], stack: ExitStack
) -> dict[str, PeerProcess]:
    """A process for each; those that cannot open their model join the absent."""
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
    """Our engine, and where it was asked for the same built with `--deterministic`; made under `work` unless given."""
    made = subject.engine_dir or make_engine(hf, subject.precision, work / OURS, subject.build_flags)
    runners: dict[str, Participant] = {OURS: EngineRunner(made)}
    if beside_deterministic:
        flags = (*subject.build_flags, "--deterministic")
        runners["deterministic"] = EngineRunner(make_engine(hf, subject.precision, work / "deterministic", flags))
    return runners
