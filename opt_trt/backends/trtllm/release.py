"""The installed release of TensorRT-LLM, found without importing it: that takes seconds and starts MPI."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from opt_trt.errors import UserError

PACKAGE = "tensorrt_llm"
BUILDER = "commands/build.py"  # releases after 1.2 lack it, like everything that builds or runs TensorRT engines
INSTALL = "pip install tensorrt_llm==1.2.1, in an environment of its own: docs/tensorrt_llm.md"


@dataclass(frozen=True, order=True)
class Release:
    """A line of releases: `Release(1, 2)` is 1.2.0, 1.2.1 and their candidates."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @classmethod
    def parse(cls, version: str) -> Release:
        """Return the line of a version like `1.2.0rc2`; refuse other texts."""
        found = re.match(r"(\d+)\.(\d+)(?!\d)", version)
        if found is None:
            raise UserError(f"expected a version of TensorRT-LLM like 1.2.1, found {version!r}")
        return cls(int(found[1]), int(found[2]))


OLDEST, NEWEST = Release(0, 10), Release(1, 2)  # the lines whose builders are known


def known_release(version: str) -> Release:
    """Return the line of a version; `UserError` if its builder is not known."""
    release = Release.parse(version)
    if not OLDEST <= release <= NEWEST:
        raise UserError(f"TensorRT-LLM {version}: builders of {OLDEST} to {NEWEST} are known; {INSTALL}")
    return release


def installed_version() -> str | None:
    """Return the version of the package that would be imported; None if there is none."""
    package = _directory()
    if package is None:
        return None
    found = re.search(r"__version__\s*=\s*[\"'](.+?)[\"']", (package / "version.py").read_text(encoding="utf-8"))
    return found[1] if found else None


def missing() -> str | None:
    """Return what must be installed before engines can be built or run, or None."""
    package = _directory()
    if package is None:
        return f"not installed; {INSTALL}"
    version = installed_version()
    if version is None:
        return f"{package / 'version.py'} does not say which release it is; {INSTALL}"
    if not (package / BUILDER).is_file():
        return f"{version}, installed here, makes no TensorRT engines any more, 1.2.1 is the last that does; {INSTALL}"
    try:
        known_release(version)
    except UserError as error:
        return str(error)
    return None if torch.cuda.is_available() else f"no GPU is visible to torch {torch.__version__}; see nvidia-smi"


def machine() -> tuple[str, ...]:
    """Return the release and the GPU that engines are built for; nothing if none can be built."""
    return () if missing() else (str(installed_version()), f"SM {visible_sm()}")


def visible_sm() -> int | None:
    """Return the compute capability of the first GPU, 80 for 8.0; None if there is no GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _directory() -> Path | None:
    """Return the directory of the package."""
    spec = find_spec(PACKAGE)
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    found = [Path(place) for place in places if (Path(place) / "version.py").is_file()]
    return found[0] if found else None
