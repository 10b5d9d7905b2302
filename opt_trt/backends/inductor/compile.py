"""Compile programs with AOTInductor; every trap of that road is dealt with here.

- loops get their thread count at run time (`dynamic_threads`), or a build with one thread would stay serial for ever;
- an axis of one is let through the input checks: examples of 2 and more make Inductor assume it never comes;
- example axes are at least 2 and no slice of the KV cache is taken inside a program (see graph/programs.py);
- the instruction set is given, not probed: probing takes seconds and would find the builder's, not the target's;
  cpp.simdlen alone would still take what the builder's processor has beyond it (VNNI, bf16);
- Inductor's own code runs in one thread at a time, the compilers it starts side by side (turns.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._inductor import aot_compile, codecache, cpu_vec_isa
from torch._inductor.cpp_builder import CppBuilder

from opt_trt import ops
from opt_trt.backends.inductor.isa import Isa
from opt_trt.backends.inductor.turns import Turns
from opt_trt.graph import decoder, embedding, programs
from opt_trt.graph.programs import ProgramSpec
from opt_trt.plugins import attention, collectives, gemm
from opt_trt.plugins import ops as plugin_ops
from opt_trt.plugins.native import compiler_version, find_compiler
from opt_trt.quant import nibbles

DirectCalls = Mapping[Any, list[str]]  # operator: declarations of the C function it is called by


class _Avx512(cpu_vec_isa.VecAVX512):
    """Torch's, which would run the compiler to find out whether it is true, and add what else the processor has."""

    def __bool__(self) -> bool:  # type: ignore[override]  # torch wraps its own in a cache
        return True


VECTORS = {512: _Avx512(), 256: cpu_vec_isa.VecAVX2(), 1: cpu_vec_isa.invalid_vec_isa}  # by Isa.vector_bits


@contextmanager
def open_inductor(isa: Isa, cache: Path) -> Iterator[Inductor]:
    """Where programs are compiled; leaving it by an exception, Ctrl-C included, waits for compilers that still run."""
    turns = Turns()
    with _told(isa, cache / "inductor", turns), ThreadPoolExecutor() as pool:
        try:
            yield Inductor(isa, cache, turns, pool)
        except BaseException:
            turns.end()
            raise


@contextmanager
def _told(isa: Isa, work_dir: Path, turns: Turns) -> Iterator[None]:
    """Inductor works in a directory, for an instruction set, whatever this processor has, and in turns."""
    build = CppBuilder.build

    def picked() -> cpu_vec_isa.VecISA:
        return VECTORS[isa.vector_bits]

    def build_in_turn(builder: CppBuilder) -> None:
        shared = builder._precompiling or builder._preprocessing  # of headers, under a lock that others may wait for
        with nullcontext() if shared else turns.compiler():
            build(builder)

    with (
        _environment("TORCHINDUCTOR_CACHE_DIR", str(work_dir)),
        mock.patch.object(cpu_vec_isa, "pick_vec_isa", picked),
        mock.patch.object(codecache, "pick_vec_isa", picked),
        mock.patch.object(CppBuilder, "build", build_in_turn),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of torch's own internals
        yield


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """One variable, and no other: programs of users may set theirs while their model is built."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ.update({name: before} if before is not None else {})


@dataclass(frozen=True)
class Inductor:
    """Compiles programs in threads; `open_inductor` makes one."""

    isa: Isa
    cache: Path
    turns: Turns
    pool: ThreadPoolExecutor

    def submit(self, spec: ProgramSpec, extra: object, direct_calls: DirectCalls | None = None) -> Future[list[str]]:
        """The files of one program, compiled now or taken from the cache directory."""
        return self.pool.submit(self._cached, spec, extra, direct_calls or {})

    def _cached(self, spec: ProgramSpec, extra: object, direct_calls: DirectCalls) -> list[str]:
        key = program_key(spec, self.isa, (extra, list(direct_calls.values())))
        kept = self.cache / "programs" / f"{spec.name}-{key}"
        if not kept.is_dir():
            temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
            temporary.mkdir(parents=True, exist_ok=True)
            try:
                with self.turns.own_code():
                    files = compile_program(spec, self.isa, direct_calls)
                for file in files:
                    shutil.copy(file, temporary)
                _put(temporary, kept)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return [str(file) for file in sorted(kept.iterdir())]


def compile_program(spec: ProgramSpec, isa: Isa, direct_calls: DirectCalls) -> list[str]:
    """Compile one program; the files it consists of, where Inductor works."""
    exported = torch.export.export(spec.module, spec.args, dynamic_shapes=spec.dynamic_shapes, strict=False)
    options = {
        "aot_inductor.package": True,
        "cpp.dynamic_threads": True,
        "cpp.simdlen": isa.vector_bits,
        "cpp.march": isa.march,
        "cpp.vec_isa_ok": True,
        "aot_inductor.check_lowerbound": False,
        "aot_inductor.custom_ops_to_c_shims": direct_calls,
    }
    with torch.no_grad():
        files = aot_compile(exported.module(), tuple(spec.args), options=options)
    assert isinstance(files, list), files
    return [str(f) for f in files]


def _put(temporary: Path, kept: Path) -> None:
    """Move a finished directory into the cache; another build may have put the same there meanwhile."""
    try:
        temporary.rename(kept)
    except OSError:
        if not kept.is_dir():
            raise


def program_key(spec: ProgramSpec, isa: Isa, extra: object) -> str:
    """A hash of all that shapes a compiled program: its sizes, tactics, versions and instruction set.

    Not the number of layers: all layers run one program.
    """
    leaves = torch.utils._pytree.tree_leaves(spec.args)
    options = {k: v for k, v in sorted(vars(spec.module).items()) if isinstance(v, int | float | str)}
    parts = [
        torch.__version__,
        compiler_version(find_compiler()),
        f"{isa.march} {isa.vector_bits}",
        repr(extra),
        graph_source(),
        repr(options),
    ]
    parts += [f"{tuple(x.shape)}{x.dtype}" for x in leaves]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def graph_source() -> str:
    """The text of the modules that programs are traced from: an edit there is another program."""
    files = (ops, nibbles, gemm, attention, collectives, plugin_ops, decoder, embedding, programs)
    return "\0".join(Path(module.__file__).read_text() for module in files if module.__file__)
