"""Compile programs with AOTInductor, and avoid those of its traps that do not depend on the device.

- Input checks must accept an axis of size 1: because examples have at least 2, Inductor assumes that 1 never occurs.
- Example axes have at least 2 elements, and no program takes a slice of the KV cache (see graph/programs.py).
- Inductor's own code runs in one thread at a time; the compilers that it starts run in parallel (turns.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch._inductor import aot_compile
from torch._inductor.config import aot_inductor
from torch._inductor.cpp_builder import CppBuilder

from opt_trt import ops
from opt_trt.backends.inductor.compiler.targets import Compilation, DirectCalls
from opt_trt.backends.inductor.compiler.turns import Turns
from opt_trt.graph import decoder, embedding, programs
from opt_trt.graph.programs import ProgramSpec
from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.collectives import native_group as collectives
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm import problem
from opt_trt.plugins.native.library import compiler_version, find_compiler
from opt_trt.plugins.ops import cpu as plugin_ops
from opt_trt.plugins.ops import plan
from opt_trt.quant import nibbles

COMMON = {"aot_inductor.package": True, "aot_inductor.check_lowerbound": False}
# Line tables serve profilers and take a tenth of the compiler's time. Only newer torch has the option.
if hasattr(aot_inductor, "enable_line_tables"):
    COMMON["aot_inductor.enable_line_tables"] = False


@contextmanager
def open_inductor(compilation: Compilation, cache: Path) -> Iterator[Inductor]:
    """Open what compiles programs. An exception, Ctrl-C included, waits for the compilers that still run."""
    turns = Turns()
    with _configured(compilation, cache / "inductor", turns), ThreadPoolExecutor() as pool:
        try:
            yield Inductor(compilation, cache, turns, pool)
        except BaseException:
            turns.end()
            raise


@contextmanager
def _configured(compilation: Compilation, work_dir: Path, turns: Turns) -> Iterator[None]:
    """Have Inductor work in a directory, for a device, and in turns."""
    build = CppBuilder.build

    def build_in_turn(builder: CppBuilder) -> None:
        # Headers are compiled under a lock that other threads may wait for.
        shared = builder._precompiling or builder._preprocessing
        with nullcontext() if shared else turns.compiler():
            build(builder)

    with (
        _environment("TORCHINDUCTOR_CACHE_DIR", str(work_dir)),
        compilation.patched(),
        mock.patch.object(CppBuilder, "build", build_in_turn),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about torch's own internals
        yield


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set one variable and restore it; a program may set other variables while its model is built."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ.update({name: before} if before is not None else {})


@dataclass(frozen=True)
class Inductor:
    """A compiler of programs, which works in threads; `open_inductor` opens one."""

    compilation: Compilation
    cache: Path
    turns: Turns
    pool: ThreadPoolExecutor

    def submit(self, spec: ProgramSpec, extra: object, direct_calls: DirectCalls | None = None) -> Future[list[str]]:
        """Start `compile` in a thread."""
        return self.pool.submit(self.compile, spec, extra, direct_calls)

    def compile(self, spec: ProgramSpec, extra: object, direct_calls: DirectCalls | None = None) -> list[str]:
        """Compile a program, or take it from the cache directory; return its files.

        `extra` is whatever else shapes the program. Operators among `direct_calls` are called as C functions.
        """
        calls = direct_calls or {}
        key = program_key(spec, self.compilation, (extra, list(calls.values())))
        kept = self.cache / "programs" / f"{spec.name}-{key}"
        if not kept.is_dir():
            temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
            temporary.mkdir(parents=True, exist_ok=True)
            try:
                with self.turns.own_code():
                    files = compile_program(spec, self.compilation, calls)
                for file in files:
                    shutil.copy(file, temporary)
                _put(temporary, kept)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return [str(file) for file in sorted(kept.iterdir())]


def compile_program(spec: ProgramSpec, compilation: Compilation, direct_calls: DirectCalls) -> list[str]:
    """Compile a program; return its files in the directory where Inductor works."""
    exported = torch.export.export(spec.module, spec.args, dynamic_shapes=spec.dynamic_shapes, strict=False)
    options = {**COMMON, **compilation.options, "aot_inductor.custom_ops_to_c_shims": direct_calls}
    with torch.no_grad():
        files = aot_compile(exported.module(), tuple(spec.args), options=options)
    assert isinstance(files, list), files
    return [str(f) for f in files]


def _put(temporary: Path, kept: Path) -> None:
    """Move a finished directory into the cache, unless another build has put the same one there meanwhile."""
    try:
        temporary.rename(kept)
    except OSError:
        if not kept.is_dir():
            raise


def program_key(spec: ProgramSpec, compilation: Compilation, extra: object) -> str:
    """Hash everything that shapes a compiled program: its sizes, tactics, versions and device.

    The number of layers is not part of it, because all layers run one program.
    """
    leaves = torch.utils._pytree.tree_leaves(spec.args)
    options = {k: v for k, v in sorted(vars(spec.module).items()) if isinstance(v, int | float | str)}
    parts = [
        torch.__version__,
        compiler_version(find_compiler()),
        compilation.key,
        repr(extra),
        graph_source(),
        repr(options),
    ]
    parts += [f"{tuple(x.shape)}{x.dtype}" for x in leaves]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def graph_source() -> str:
    """Return the text of the modules that programs are traced from: after an edit, programs are other ones."""
    files = (ops, nibbles, problem, gemm, attention, collectives, plan, plugin_ops, decoder, embedding, programs)
    return "\0".join(Path(module.__file__).read_text() for module in files if module.__file__)
