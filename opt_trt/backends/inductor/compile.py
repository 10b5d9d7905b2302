"""Compile programs with AOTInductor and put them into one package; the traps of that road that any device has.

- an axis of one is let through the input checks: examples of 2 and more make Inductor assume it never comes;
- example axes are at least 2 and no slice of the KV cache is taken inside a program (see graph/programs.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import torch
from torch._inductor import aot_compile
from torch._inductor.package.package import package_aoti

from opt_trt import ops
from opt_trt.backends.inductor.compilation import Compilation
from opt_trt.graph import decoder, embedding, programs
from opt_trt.graph.programs import ProgramSpec
from opt_trt.plugins import attention, collectives, gemm
from opt_trt.plugins import ops as plugin_ops
from opt_trt.plugins.native import compiler_version, find_compiler
from opt_trt.quant import nibbles

COMMON = {"aot_inductor.package": True, "aot_inductor.check_lowerbound": False}


def compile_program(spec: ProgramSpec, compilation: Compilation, work_dir: Path) -> list[str]:
    """Compile one program; the files it consists of, in `work_dir`."""
    exported = torch.export.export(spec.module, spec.args, dynamic_shapes=spec.dynamic_shapes, strict=False)
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(work_dir)}
    with mock.patch.dict(os.environ, environment), torch.no_grad(), warnings.catch_warnings(), compilation.patched():
        warnings.simplefilter("ignore")  # of torch's own internals
        files = aot_compile(exported.module(), tuple(spec.args), options={**COMMON, **compilation.options})
    assert isinstance(files, list), files
    return [str(f) for f in files]


def cached_program(spec: ProgramSpec, compilation: Compilation, extra: object, cache: Path) -> list[str]:
    """The files of one program, compiled now or taken from the cache directory."""
    kept = cache / "programs" / f"{spec.name}-{program_key(spec, compilation, extra)}"
    if not kept.is_dir():
        temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            for file in compile_program(spec, compilation, cache / "inductor"):
                shutil.copy(file, temporary)
            _put(temporary, kept)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return [str(file) for file in sorted(kept.iterdir())]


def _put(temporary: Path, kept: Path) -> None:
    """Move a finished directory into the cache; another build may have put the same there meanwhile."""
    try:
        temporary.rename(kept)
    except OSError:
        if not kept.is_dir():
            raise


def package_programs(programs: Mapping[str, list[str]], out: Path) -> None:
    """Put programs, given by their files, into one package; each is loaded by its name."""
    with tempfile.TemporaryDirectory(dir=out.parent) as directory:
        package = Path(directory, "programs.pt2")  # the packager warns about any other ending
        package_aoti(str(package), {name: [*files] for name, files in programs.items()})
        package.replace(out)


def program_key(spec: ProgramSpec, compilation: Compilation, extra: object) -> str:
    """A hash of all that shapes a compiled program: its sizes, tactics, versions and device.

    Not the number of layers: all layers run one program.
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
    """The text of the modules that programs are traced from: an edit there is another program."""
    files = (ops, nibbles, gemm, attention, collectives, plugin_ops, decoder, embedding, programs)
    return "\0".join(Path(module.__file__).read_text() for module in files if module.__file__)
