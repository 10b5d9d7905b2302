"""The name of the program, and of the other commands, in the form in which this one was started."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from opt_trt.host.program import program, program_of


@pytest.mark.parametrize(
    ("module", "argv", "name", "builds", "repacks"),
    [
        ("opt_trt.__main__", ["opt_trt/__main__.py", "convert"], "python -m opt_trt convert", "python -m opt_trt build",
         "python -m opt_trt repack"),
        ("opt_trt.describe.__main__", ["x.py", "d"], "python -m opt_trt.describe", "python -m opt_trt build",
         "python -m opt_trt repack"),
        (None, ["convert_checkpoint.py"], "python convert_checkpoint.py", "python build.py",
         "python -m opt_trt repack"),
        (None, ["/a b/run.py"], "python '/a b/run.py'", "python '/a b/build.py'", "python -m opt_trt repack"),
        (None, ["/venv/bin/opt-trt-export-hf"], "opt-trt-export-hf", "opt-trt-build", "opt-trt-repack"),
        (None, ["-c"], "-c", "python -m opt_trt build", "python -m opt_trt repack"),
        ("pytest.__main__", ["/p/pytest/__main__.py"], "python /p/pytest/__main__.py", "python -m opt_trt build",
         "python -m opt_trt repack"),
    ],
)  # fmt: skip
def test_a_command_is_named_as_it_was_started(monkeypatch, module, argv, name, builds, repacks):
    main = ModuleType("__main__")
    main.__spec__ = None if module is None else SimpleNamespace(name=module)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", argv)
    assert (program(), program_of("build"), program_of("repack")) == (name, builds, repacks)
