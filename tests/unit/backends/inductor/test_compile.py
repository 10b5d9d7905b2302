"""Programs are compiled as the plugin library is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from opt_trt.backends.inductor.compiler import compile as compiling
from opt_trt.backends.inductor.compiler.targets import Compilation
from opt_trt.graph.programs import ProgramSpec
from opt_trt.plugins.native.library import find_compiler


@pytest.mark.parametrize("given", ["", None])
def test_programs_take_the_compiler_that_the_plugin_library_takes(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch would start an empty CXX, which is none, and knows g++ alone."""
    monkeypatch.delenv("CXX", raising=False)
    if given is not None:
        monkeypatch.setenv("CXX", given)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(compiling, "aot_compile", lambda module, args, options: seen.update(options) or [])
    spec = ProgramSpec("one", torch.nn.Identity(), (torch.ones(2),), None)
    compiling.compile_program(spec, Compilation("", {}, lambda: None), {})
    assert seen["cpp.cxx"] == (None, find_compiler())
