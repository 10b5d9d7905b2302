"""Build every job of a file in one process, and write what the library's logger said about each: `_many_builds DIR`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from opt_trt.backends.tensorrt.compile_rank import Job, compile_rank
from opt_trt.backends.tensorrt.library import load_library


def main() -> None:
    directory, said = Path(sys.argv[1]), []

    def send(**event: Any) -> None:  # one function for all jobs: the library keeps the first logger of a process
        said.extend(event["log"][1:] if "log" in event else ())

    logs = {}
    jobs = json.loads((directory / "jobs.json").read_text())
    for name, values in sorted(jobs.items(), key=lambda job: job[0] == "unnamed"):
        if name == "unnamed":
            load_library().ITensor.set_dimension_name = lambda *_: None
        said.clear()
        compile_rank(Job(**values), send)
        logs[name] = list(said)
    (directory / "logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main()
