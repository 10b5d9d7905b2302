"""The peak memory of a command in a process of its own, and that of its libraries alone."""

from __future__ import annotations

import json
from typing import Any

from tests._processes import run_python

PEAK = """
import json, sys
import safetensors, tqdm
from importlib import import_module
import torch
torch.ones(64, 64) @ torch.ones(64, 64)
config_module, config_class, module, entry = sys.argv[1:5]
make, command = getattr(import_module(config_module), config_class), getattr(import_module(module), entry)
if len(sys.argv) > 5:
    command(make(**json.loads(sys.argv[5])))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_bytes(*command: str, **flags: Any) -> int:
    """Return the peak memory of a process with mapped pages (VmHWM; ru_maxrss may include the parent's memory).

    `command` is a configuration's module and class, a library's module and entry; without flags it is not called.
    """
    asked = [json.dumps(flags)] if flags else []
    done = run_python("-c", PEAK, *command, *asked, environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1]) * 1024
