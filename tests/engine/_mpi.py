"""Start ranks: several processes of one script under `mpirun`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MPIRUN = Path(sys.executable).with_name("mpirun")
PATIENCE_S = 600  # a rank needs seconds; who hangs must not hang the tests


def mpirun(ranks: int, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a module of the tests in that many ranks, which may be more than cores."""
    command = [
        str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks),
        sys.executable, "-m", module, *map(str, arguments),
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
