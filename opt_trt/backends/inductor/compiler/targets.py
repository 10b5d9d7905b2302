"""Configure Inductor for a device, and keep it from probing this machine.

- Loops of a CPU have one thread. They are short beside the kernels, whose threads (`plugins/cpu/team.h`) would share
  cores with those of OpenMP.
- The instruction set is given, not probed: probing takes seconds and would find that of the builder, not that of the
  target. `cpp.simdlen` alone would still use what the builder's processor has beyond it (VNNI, bf16).
- CUDA's headers are searched in more places than torch searches: it takes the home of the first compiler on the path.
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

from opt_trt.errors import UserError, spelled
from opt_trt.plugins.cpu.isa import Isa, runnable_isas
from opt_trt.plugins.cuda.gpu import Gpu

TOOLKIT = "/usr/local/cuda"
HEADERS = ("cuda.h", "crt/host_defines.h", "nv/target")  # one header of each of three packages
DirectCalls = Mapping[Any, list[str]]  # operator: declarations of the C function to call instead


@dataclass(frozen=True)
class Compilation:
    """A configuration of Inductor; `key` distinguishes its programs from those of others."""

    key: str
    options: Mapping[str, object]
    patched: Callable[[], AbstractContextManager[None]] = nullcontext  # patches that must hold while Inductor works


class _Avx512(cpu_vec_isa.VecAVX512):
    """AVX-512 without a test: torch's class runs a compiler to test for it, and adds the extensions that it finds."""

    def __bool__(self) -> bool:  # type: ignore[override]  # torch caches its own method
        return True


VECTORS = {512: _Avx512(), 256: cpu_vec_isa.VecAVX2(), 1: cpu_vec_isa.invalid_vec_isa}  # by Isa.vector_bits


def for_cpu(isa: Isa) -> Compilation:
    """Configure for an instruction set."""
    options = {
        "cpp.threads": 1,
        "cpp.simdlen": isa.vector_bits,
        "cpp.march": isa.march,
        "cpp.vec_isa_ok": True,
    }
    return Compilation(f"{isa.march} {isa.vector_bits} 1 thread", options, lambda: _vectors_of(isa))


@contextmanager
def _vectors_of(isa: Isa) -> Iterator[None]:
    """Have Inductor generate loops for an instruction set, whatever this processor has."""

    def picked() -> cpu_vec_isa.VecISA:
        return VECTORS[isa.vector_bits]

    with mock.patch.object(cpu_vec_isa, "pick_vec_isa", picked), mock.patch.object(codecache, "pick_vec_isa", picked):
        yield


def for_gpu(gpu: Gpu, kernels: str) -> Compilation:
    """Configure for a GPU beside any processor; `UserError` if CUDA's headers are missing.

    `kernels` identifies the source of the kernels.
    """
    host = for_cpu(runnable_isas()[-1])
    wheels = Path(torch.__file__).parents[1] / "nvidia"
    home = cuda_home([*map(Path, filter(None, (cpp_extension.CUDA_HOME, TOOLKIT))), *sorted(wheels.glob("cu*"))])
    key = f"cuda {gpu.capability} {kernels}, {host.key}"
    return Compilation(key, host.options, lambda: _cuda_in(home, host.patched()))


def cuda_home(candidates: Sequence[Path]) -> str:
    """Return the first directory whose `include` has all headers; some packages have only a part of the toolkit."""
    for candidate in candidates:
        if all((candidate / "include" / header).is_file() for header in HEADERS):
            return str(candidate)
    raise UserError(
        f"building for a GPU needs CUDA's headers ({', '.join(HEADERS)}), found them in none of "
        f"{', '.join(map(str, candidates))}; install a toolkit of CUDA {torch.version.cuda}, or its packages "
        f"nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl, set CUDA_HOME, or give {spelled('device')} cpu"
    )


@contextmanager
def _cuda_in(home: str, host: AbstractContextManager[None]) -> Iterator[None]:
    with mock.patch.object(cpp_extension, "CUDA_HOME", new=home), host:
        yield
