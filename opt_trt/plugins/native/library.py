"""Compile the C++ plugin library and load it, each exactly once.

The operators' namespace carries a hash of everything that shapes the library. So libraries of different engines can be
open in one process, and a second copy of a library, which would kill the process if it were loaded, is recognized.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opt_trt.errors import UserError
from opt_trt.host.kept import keep
from opt_trt.plugins.cpu.operators import Operators

PLUGINS = Path(__file__).parents[1]
SOURCE = PLUGINS / "native" / "register.cpp"  # it includes every header
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fvisibility=hidden")


_T = "AtenTensorHandle"
DIRECT_CALLS = {  # operator → the C function that AOTInductor calls for it, which register.cpp defines
    "gemm": f"AOTITorchError aoti_torch_cpu_gemm({_T}, {_T}, {_T}*, {_T}*, {_T}*, int32_t, int64_t, const int64_t*, "
    f"int64_t, const int64_t*, int64_t, {_T}*)",
    "attention": f"AOTITorchError aoti_torch_cpu_attention({_T}, {_T}, {_T}, {_T}, {_T}, {_T}, int64_t, {_T}*)",
    "layer_norm": f"AOTITorchError aoti_torch_cpu_layer_norm({_T}, {_T}, {_T}, double, {_T}*)",
}

SHAPES: dict[str, Callable[..., torch.Tensor]] = {  # operator → an empty result, for `torch.export`
    "gemm": lambda x, weight, scale, bias, residual, relu, n, buckets, tactics: x.new_empty(x.shape[0], n),
    "attention": lambda qkv, cache, *step: qkv.new_empty(qkv.shape[0], cache.shape[2] * cache.shape[4]),
    "layer_norm": lambda x, weight, bias, epsilon: torch.empty_like(x),
    "all_reduce": lambda x, ranks: torch.empty_like(x),
    "all_gather": lambda x, ranks, features: x.new_empty(x.shape[0], features),
}


@dataclass(frozen=True)
class NativeLibrary:
    """A compiled plugin library: the namespace of its operators, and its file."""

    namespace: str
    path: Path

    def operators(self) -> Operators:
        """Load the library, unless it is loaded already, and return `torch.ops.<namespace>`."""
        return load(self.namespace, str(self.path))

    def direct_calls(self) -> dict[Any, list[str]]:
        """Return the C declarations of the operators that compiled programs call by name.

        AOTInductor calls the same name for all libraries. The declaration binds it to the symbol of this library.
        """
        operators = self.operators()
        return {
            getattr(operators, name).default: [f'{declaration} __asm__("{self.namespace}_{name}")']
            for name, declaration in DIRECT_CALLS.items()
        }


def find_compiler() -> str:
    """Find the C++ compiler; a `UserError` says how to get one."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler) is None:
        arguments = " alone: a launcher or options belong into a script" if len((compiler or "").split()) > 1 else ""
        raise UserError(
            f"building an engine needs a C++ compiler, found {compiler or 'neither g++ nor clang++'}; "
            f"install one (Debian and Ubuntu: apt-get install g++), or set CXX to its path{arguments}"
        )
    return compiler


@functools.cache
def compiler_version(compiler: str) -> str:
    """Return the first line of `--version`, which is part of what a compiled library depends on."""
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    if result.returncode or not result.stdout.strip():
        raise UserError(f"expected a C++ compiler, found {compiler}, which does not tell its --version; set CXX to one")
    return result.stdout.splitlines()[0]


def compile_library(march: str, cache_dir: Path) -> NativeLibrary:
    """Return the library for an instruction set, from `cache_dir` or compiled now."""
    compiler = find_compiler()
    content = [torch.__version__, compiler_version(compiler), march, *FLAGS]
    content += [source.read_text() for source in sorted((SOURCE, *PLUGINS.rglob("*.h")))]
    namespace = "opt_trt_" + hashlib.sha256("\0".join(content).encode()).hexdigest()[:16]
    name = f"{namespace}.so"
    [path] = keep(cache_dir, namespace, lambda directory: _compile(compiler, march, namespace, directory / name))
    return NativeLibrary(namespace, path)


def _compile(compiler: str, march: str, namespace: str, out: Path) -> None:
    root = Path(torch.__file__).parent
    command = [
        compiler, *FLAGS, f"-march={march}", f"-DOPT_TRT_NAMESPACE={namespace}", f"-I{root / 'include'}",
        str(SOURCE), "-o", str(out), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode or not out.is_file():
        lines = result.stderr.splitlines()
        full = next((line for line in lines if "No space left" in line or "Cannot create temporary file" in line), None)
        detail = full or next(iter(lines), f"exit code {result.returncode}")
        advice = "free space there, or set TMPDIR" if full else "a C++20 compiler is needed (g++ 11 or newer)"
        raise UserError(f"{compiler} could not compile the plugin library: {detail}; {advice}")


@functools.cache
def load(namespace: str, path: str) -> Operators:
    """Register a library's operators, unless a copy of it is loaded already from any path."""
    operators: Operators = getattr(torch.ops, namespace)
    if not _registered(namespace):
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)  # so that compiled programs find its functions by name
        _register_shapes(namespace)
    return operators


def _registered(namespace: str) -> bool:
    return any(name.startswith(f"{namespace}::") for name in torch._C._dispatch_get_all_op_names())


def _register_shapes(namespace: str) -> None:
    """Tell torch the shapes that operators return; the library of an older engine may lack some."""
    found = frozenset(torch._C._dispatch_get_all_op_names())
    for name, shape in SHAPES.items():
        if f"{namespace}::{name}" in found:
            torch.library.register_fake(f"{namespace}::{name}", shape)
