"""Virtual environments of the peers, created at first use, because their pinned versions conflict with ours."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from peers import HERE, Peer


class PeerUnavailable(Exception):
    """The reason why a peer cannot take part."""


def peer_python(peer: Peer, cache: Path) -> Path:
    """Return an interpreter with the peer's requirements; install them under `cache` at first use.

    `PeerUnavailable` if they cannot be installed.
    """
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
        ready.touch()  # created last, so that an interrupted installation is repeated
    return python


def install(python: Path, requirements: Path) -> None:
    """Run pip; `PeerUnavailable` with the last line of its errors if it fails."""
    command = [python, "-m", "pip", "install", "--quiet", "-r", requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PeerUnavailable(f"{requirements.name} cannot be installed: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed no error")
