"""Compile programs with AOTInductor, and avoid those of its traps that do not depend on the device.

- Input checks must accept an axis of size 1: because examples have at least 2, Inductor assumes that 1 never occurs.
- Example axes have at least 2 elements, and no program takes a slice of the KV cache (see graph/programs.py).
- Inductor's own code runs in one thread at a time; the compilers that it starts run in parallel (turns.py).
- It trusts what it finds where it works, and cannot work where a path has a space. So it works in a new directory with
  a plain path each time, and finished programs are kept with checksums elsewhere.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch._inductor import aot_compile, codecache
from torch._inductor.config import aot_inductor
from torch._inductor.cpp_builder import CppBuilder

from opt_trt import ops
from opt_trt.backends.inductor.compiler.targets import Compilation, DirectCalls
from opt_trt.backends.inductor.compiler.turns import Turns
from opt_trt.graph import decoder, embedding, programs
from opt_trt.graph.programs import ProgramSpec
from opt_trt.host.environment import environment
from opt_trt.host.kept import copy_files, is_whole, keep, replace_kept, trusted
from opt_trt.host.scratch import is_plain, scratch_directory
from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.collectives import native_group as collectives
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm import problem
from opt_trt.plugins.native.library import compiler_version, find_compiler
from opt_trt.plugins.ops import cpu as plugin_ops
from opt_trt.plugins.ops import plan
from opt_trt.quant import nibbles

HEADERS = "headers"
COMMON = {"aot_inductor.package": True, "aot_inductor.check_lowerbound": False}
# Line tables serve profilers and take a tenth of the compiler's time. Only newer torch has the option.
if hasattr(aot_inductor, "enable_line_tables"):
    COMMON["aot_inductor.enable_line_tables"] = False


@contextmanager
def open_inductor(compilation: Compilation, cache: Path) -> Iterator[Inductor]:
    """Open what compiles programs. An exception, Ctrl-C included, waits for the compilers that still run."""
    turns = Turns()
    with (
        scratch_directory(trusted(cache)) as work_dir,
        kept_headers(cache, work_dir / HEADERS),
        _configured(compilation, work_dir, turns),
        ThreadPoolExecutor() as pool,
    ):
        try:
            yield Inductor(compilation, cache, turns, pool)
        except BaseException:
            turns.end()
            raise


@contextmanager
def kept_headers(cache: Path, headers: Path) -> Iterator[None]:
    """Fill a directory with the precompiled headers of earlier builds, and keep those of a build that succeeds.

    One takes eight seconds to compile and 100 MB. A damaged one would end every later build.
    """
    kept = cache / HEADERS
    headers.mkdir()
    if is_whole(kept):
        copy_files(kept, headers)
    yield
    if {file.name for file in headers.iterdir() if file.is_file()} - {file.name for file in kept.glob("*")}:
        replace_kept(cache, HEADERS, lambda directory: copy_files(headers, directory))


@contextmanager
def _configured(compilation: Compilation, work_dir: Path, turns: Turns) -> Iterator[None]:
    """Have Inductor work in a directory, for a device, and in turns."""
    build = CppBuilder.build

    def build_in_turn(builder: CppBuilder) -> None:
        # Headers are compiled under a lock that other threads may wait for.
        shared = builder._precompiling or builder._preprocessing
        with nullcontext() if shared else turns.compiler():
            build(builder)

    headers = work_dir / HEADERS
    codecache._precompile_header.cache_clear()  # it remembers paths of headers, which have gone with an earlier build
    with (
        environment("TORCHINDUCTOR_CACHE_DIR", str(work_dir)),
        nullcontext()
        if is_plain(Path(tempfile.gettempdir()))
        else mock.patch.object(tempfile, "tempdir", str(work_dir)),
        mock.patch.object(codecache, "_HEADER_DIR", str(headers)),
        mock.patch.object(codecache, "_HEADER_LOCK_DIR", str(headers / "locks")),
        compilation.patched(),
        mock.patch.object(CppBuilder, "build", build_in_turn),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about torch's own internals
        yield


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

        def make(directory: Path) -> None:
            with self.turns.own_code():
                files = compile_program(spec, self.compilation, calls)
            for file in files:
                shutil.copy(file, directory)

        return [str(file) for file in keep(self.cache, f"programs/{spec.name}-{key}", make)]


def compile_program(spec: ProgramSpec, compilation: Compilation, direct_calls: DirectCalls) -> list[str]:
    """Compile a program; return its files in the directory where Inductor works."""
    exported = torch.export.export(spec.module, spec.args, dynamic_shapes=spec.dynamic_shapes, strict=False)
    options = {**COMMON, **compilation.options, "aot_inductor.custom_ops_to_c_shims": direct_calls}
    options["cpp.cxx"] = (None, find_compiler())  # torch would take an empty CXX, and knows no other name than g++
    with torch.no_grad():
        files = aot_compile(exported.module(), tuple(spec.args), options=options)
    assert isinstance(files, list), files
    return [str(f) for f in files]


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
