"""The kernels that the library compiled on this GPU, kept for the next session; they may be deleted at any time."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from opt_trt.host.atomic import replace_file
from opt_trt.host.cache import cache_dir


class RuntimeCache:
    """A file of compiled kernels. A library that compiles nothing on the GPU has none: nothing is done.

    The library itself refuses a file of another GPU, driver or release; it compiles anew, and the file is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kernels: Any = None  # the library's own cache
        self._saved = b""

    def attach(self, config: Any) -> None:
        """Let a context that is created by `config` take kernels from the file, and add its own."""
        if not hasattr(config, "create_runtime_cache"):
            return
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
            if self._path.is_file():
                self._saved = self._path.read_bytes()
                self._kernels.deserialize(self._saved)
        config.set_runtime_cache(self._kernels)

    def save(self) -> None:
        """Write the file if there are new kernels. A directory that cannot be written is no error, but is named."""
        if self._kernels is None or (content := bytes(self._kernels.serialize())) == self._saved:
            return
        self._saved = content
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, lambda file: file.write(content))
        except OSError as error:
            print(f"{self._path}: kernels are not kept for the next session ({error})", file=sys.stderr)


def runtime_cache(*facts: str) -> RuntimeCache:
    """Return the file of an engine on a GPU, given all texts that tell it from others."""
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return RuntimeCache(cache_dir() / "tensorrt" / f"{key}.kernels")
