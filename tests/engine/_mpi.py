"""Start ranks: several processes of one script under `mpirun`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests._processes import run

MPIRUN = Path(sys.executable).with_name("mpirun")
PATIENCE_S = 600  # a rank needs seconds; a rank that hangs must not hang the tests


def launcher(ranks: int) -> list[str]:
    """Return the command that starts so many ranks. They may outnumber the cores, and the user may be root."""
    return [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]


def mpirun(ranks: int, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a module of the tests in that many ranks."""
    command = (*launcher(ranks), "--bind-to", "none", sys.executable, "-m", module, *arguments)
    return run(*command, environment={"OMP_NUM_THREADS": "1"}, timeout=PATIENCE_S)
