"""Sessions of the tensorrt_llm backend over the double of a release, in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opt_trt.backends import open_engine
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.scheduling import Scheduling
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session
from tests.trtllm._engine_dirs import write_engine
from tests.trtllm._facts import Facts
from tests.trtllm._runner import RecordedCalls, modules


@contextmanager
def installed(facts: Facts, seen: RecordedCalls, rank: int = 0) -> Iterator[None]:
    """Put the double's modules into `sys.modules` during the block."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensorrt_llm"}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules(facts, seen, rank))
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]:
            del sys.modules[name]
        sys.modules.update(before)


@dataclass
class Double:
    """The double as a test uses it: its engines, its sessions, and the calls that it got."""

    directory: Path
    seen: RecordedCalls

    def engine(self, **changes: Any) -> Path:
        """Write an engine directory and return it."""
        return write_engine(self.directory / "engine", **changes)

    def open(self, options: RuntimeOptions | None = None, how: Any = (), **changes: Any) -> Session:
        """Open a session; `how` are limit and scheduling."""
        limit, scheduling = how or (KvCacheLimit(), Scheduling())
        return open_engine(self.engine(**changes), limit, scheduling, options)
