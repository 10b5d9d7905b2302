"""A peer in a process of its own: it is started once, gets requests over a pipe, and is idle between its turns."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from costs import Computes
from turns import Prompts

from peers import HERE, PeerVariant
from peers.environment import PeerUnavailable, last_line, peer_python

OURS = ("GOMP_SPINCOUNT",)  # set for our commands only; peers run with their own defaults


def environment() -> dict[str, str]:
    """Return the environment variables for peers."""
    return {name: value for name, value in os.environ.items() if name not in OURS}


def converted(choice: PeerVariant, hf: Path, cache: Path) -> Path:
    """Return the model in the peer's format; convert it beside the Hugging Face directory at first use."""
    if not choice.peer.converts:
        return hf
    stored = choice.variant.partition("-")[0]  # the text behind the hyphen is chosen at run time
    out = hf.parent / f"{choice.name}-{stored}"
    if not out.exists():
        print(f"converting {hf} for {choice.label}", flush=True)
        unfinished = out.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [
            peer_python(choice.peer, cache),
            HERE / choice.peer.script,
            "convert",
            hf,
            unfinished,
            choice.variant,
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if done.returncode:
            raise PeerUnavailable(f"cannot convert the model: {last_line(done.stderr)}")
        unfinished.rename(out)
    return out


class PeerProcess:
    """A running peer that has loaded its model."""

    def __init__(self, choice: PeerVariant, model: Path, cache: Path, log: Path) -> None:
        command = [peer_python(choice.peer, cache), HERE / choice.peer.script, "serve", model, choice.variant]
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
            )
        self.computes = Computes(**self._answer())

    def seconds(self, prompts: Prompts, output_len: int) -> float:
        """Return the seconds of a generation by the peer's own clock, as `TimedRunner.seconds` says."""
        return float(self._ask("seconds", prompts=prompts, output_len=output_len))

    def logits(self, prompts: Prompts) -> np.ndarray:
        """Return logits as `LogitsRunner.logits` says."""
        numbers = np.frombuffer(base64.b64decode(self._ask("logits", prompts=prompts)), np.float32)
        return numbers.reshape(len(prompts), -1)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, question: str, **asked: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({question: asked}) + "\n")
        self._process.stdin.flush()
        return self._answer()[question]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise PeerUnavailable(
                f"ended: {last_line(self._log.read_text(errors='replace'))} (all of it in {self._log})"
            )
        return dict(json.loads(line))
