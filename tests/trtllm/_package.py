"""Write the double of a release: a package `tensorrt_llm` whose modules are made of the release's facts when imported.

A process imports it in the environment that `environment` returns. Variables describe the machine:
`DOUBLE_GPUS` (1 unless given) and `DOUBLE_SM` (80) are its GPUs, `DOUBLE_FAILURE` is an error the compiler ends with,
`DOUBLE_SEEN` a directory in which each rank writes the calls that its runners got.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.trtllm._facts import Release, load

ROOT = Path(__file__).parents[2]
FACTS_FILE = "facts.json"
HEADER = "from pathlib import Path\nimport json\n"
READ = HEADER + "facts = json.loads((Path(__file__).parents[{up}] / 'facts.json').read_text())\n"

BUILD = (
    READ.format(up=1)
    + """
from tests.trtllm._builder import Parser, main

def parse_arguments():
    return Parser(facts)

if __name__ == "__main__":
    main(facts)
"""
)

RUN = (
    READ.format(up=1)
    + """
import os
from tests.trtllm._runner import modules, noted

rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
made = modules(facts, noted(os.environ.get("DOUBLE_SEEN"), rank), rank)[__name__]
globals().update({name: value for name, value in vars(made).items() if not name.startswith("__")})
"""
)

# Module files of the double and their text.
MODULES = {
    "__init__.py": "from tensorrt_llm.version import __version__\n",
    "version.py": '__version__ = "{version}"\n',
    "commands/__init__.py": "",
    "commands/build.py": BUILD,
    "runtime/__init__.py": RUN,
    "bindings/__init__.py": RUN,
    "builder.py": READ.format(up=0)
    + "from tests.trtllm._builder import build_config_class\nBuildConfig = build_config_class(facts)\n",
}


def install(directory: Path, release: Release | str = "1.2") -> Path:
    """Write the package of a release into a directory, to be put on the path; the directory."""
    release = load(release) if isinstance(release, str) else release
    package = directory / "tensorrt_llm"
    for name, text in MODULES.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{version}", release.version))
    (package / FACTS_FILE).write_text(json.dumps(release.facts))
    return directory


def environment(directory: Path, **double: str) -> dict[str, str]:
    """Return the environment of a process that imports the double in `directory`; `GPUS="0"` sets `DOUBLE_GPUS`."""
    path = os.pathsep.join([str(directory), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return os.environ | {"PYTHONPATH": path} | {f"DOUBLE_{name}": value for name, value in double.items()}
