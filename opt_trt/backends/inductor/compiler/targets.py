"""How Inductor is told to compile for a device, and what it is kept from finding out by itself.

- loops of a CPU get their thread count at run time (`dynamic_threads`), or a build with one thread would stay serial;
- the instruction set is given, not probed: probing takes seconds and would find the builder's, not the target's;
  cpp.simdlen alone would still take what the builder's processor has beyond it (VNNI, bf16);
- CUDA's headers are looked for beyond where torch does: it takes the home of the first compiler on the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._inductor import codecache, cpu_vec_isa
from torch.utils import cpp_extension

from opt_trt.errors import UserError
from opt_trt.plugins.cpu.isa import Isa, runnable_isas
from opt_trt.plugins.cuda.gpu import Gpu

TOOLKIT = "/usr/local/cuda"
HEADERS = ("cuda.h", "crt/host_defines.h", "nv/target")  # of three packages
DirectCalls = Mapping[Any, list[str]]  # operator: declarations of the C function it is called by


@dataclass(frozen=True)
class Compilation:
    """One way to compile: `key` tells its programs from those of others."""

    key: str
    options: Mapping[str, object]
    patched: Callable[[], AbstractContextManager[None]] = nullcontext  # what must hold while Inductor works


class _Avx512(cpu_vec_isa.VecAVX512):
    """Torch's, which would run the compiler to find out whether it is true, and add what else the processor has."""

    def __bool__(self) -> bool:  # type: ignore[override]  # torch wraps its own in a cache
        return True


VECTORS = {512: _Avx512(), 256: cpu_vec_isa.VecAVX2(), 1: cpu_vec_isa.invalid_vec_isa}  # by Isa.vector_bits


def for_cpu(isa: Isa) -> Compilation:
    """For an instruction set."""
    options = {
        "cpp.dynamic_threads": True,
        "cpp.simdlen": isa.vector_bits,
        "cpp.march": isa.march,
        "cpp.vec_isa_ok": True,
    }
    return Compilation(f"{isa.march} {isa.vector_bits}", options, lambda: _vectors_of(isa))


@contextmanager
def _vectors_of(isa: Isa) -> Iterator[None]:
    """Inductor generates and compiles loops for an instruction set, whatever this processor has."""

    def picked() -> cpu_vec_isa.VecISA:
        return VECTORS[isa.vector_bits]

    with mock.patch.object(cpu_vec_isa, "pick_vec_isa", picked), mock.patch.object(codecache, "pick_vec_isa", picked):
        yield


def for_gpu(gpu: Gpu, kernels: str) -> Compilation:
    """For a GPU beside any processor; `kernels` says what these are made of. `UserError` if CUDA lacks its headers."""
    host = for_cpu(runnable_isas()[-1])
    wheels = Path(torch.__file__).parents[1] / "nvidia"
    home = cuda_home([*map(Path, filter(None, (cpp_extension.CUDA_HOME, TOOLKIT))), *sorted(wheels.glob("cu*"))])
    key = f"cuda {gpu.capability} {kernels}, {host.key}"
    return Compilation(key, host.options, lambda: _cuda_in(home, host.patched()))


def cuda_home(candidates: Sequence[Path]) -> str:
    """The first directory whose `include` has all headers: some packages are a compiler alone, or part of a toolkit."""
    for candidate in candidates:
        if all((candidate / "include" / header).is_file() for header in HEADERS):
            return str(candidate)
    raise UserError(
        f"building for a GPU needs CUDA's headers ({', '.join(HEADERS)}), found them in none of "
        f"{', '.join(map(str, candidates))}; install a toolkit of CUDA {torch.version.cuda}, or its packages "
        "nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl, set CUDA_HOME, or give --device cpu"
    )


@contextmanager
def _cuda_in(home: str, host: AbstractContextManager[None]) -> Iterator[None]:
    with mock.patch.object(cpp_extension, "CUDA_HOME", new=home), host:
        yield
