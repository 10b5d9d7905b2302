"""Virtual environments of the peers, made on first use; their pins conflict with ours and with one another's."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from peers import HERE, Peer


class PeerUnavailable(Exception):
    """A peer that cannot take part, and why."""


def peer_python(peer: Peer, cache: Path) -> Path:
    """The interpreter that has what the peer needs; installs it once under `cache`. `PeerUnavailable` if it cannot."""
    if peer.requirements is None:
        return Path(sys.executable)
    requirements = HERE / peer.requirements
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    home = cache / "environments" / f"{requirements.stem}-{digest}"
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        print(f"installing {peer.requirements} into {home}", flush=True)
        venv.create(home, clear=True, with_pip=True)
        install(python, requirements)
        ready.touch()  # last: an interrupted installation is begun again
    return python


def install(python: Path, requirements: Path) -> None:
    """Run pip; `PeerUnavailable` with its last word if it fails."""
    command = [python, "-m", "pip", "install", "--quiet", "-r", requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PeerUnavailable(f"{requirements.name} cannot be installed: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """What a failed program said last."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
