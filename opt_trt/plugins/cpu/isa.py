"""Instruction sets an engine can be built for, and which of them this processor runs.

An engine records the processor flags its code may use: those its instruction set needs, and those of tactics that won.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path

from opt_trt.errors import UserError, spelled


@dataclass(frozen=True)
class Isa:
    """One instruction set: its names for compilers, and the processor flags that it needs."""

    name: str
    march: str
    vector_bits: int  # Inductor's cpp.simdlen; 1 is scalar code
    needs: frozenset[str]
    extras: frozenset[str] = frozenset()  # flags beyond these that tactics may use


X86 = frozenset({"sse", "sse2"})
X86_AVX2 = X86 | {"sse4_2", "ssse3", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
X86_AVX512 = X86_AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

# Best first.
ISAS = (
    Isa("avx512", "x86-64-v4", 512, X86_AVX512),
    Isa("avx2", "x86-64-v3", 256, X86_AVX2),
    Isa("generic", "x86-64", 1, X86),
)
OTHER_PROCESSOR = Isa("generic", "native", 1, frozenset())
INT8_PRODUCTS = "avx512_vnni"
EXTRAS = frozenset({"avx512_bf16", INT8_PRODUCTS})  # used only with 512-bit vectors


def processor_flags() -> frozenset[str]:
    """Return the flags of this processor, as the kernel lists them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def runnable_isas(flags: frozenset[str] | None = None) -> tuple[Isa, ...]:
    """Return the instruction sets that this processor runs, best first."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return (OTHER_PROCESSOR,)
    flags = processor_flags() if flags is None else flags
    return tuple(isa for isa in ISAS if isa.needs <= flags)


def target_isa(name: str | None = None, flags: frozenset[str] | None = None) -> Isa:
    """Return the instruction set to build for.

    A name means that set without extras. Without a name, it is the best that this processor runs, with the extras that
    it has. A set that it does not run is a `UserError`, because tactics are checked and timed where an engine is built.
    """
    flags = processor_flags() if flags is None else flags
    runnable = runnable_isas(flags)
    if name is None:
        return replace(runnable[0], extras=flags & EXTRAS if runnable[0].vector_bits == 512 else frozenset())
    for isa in runnable:
        if isa.name == name:
            return isa
    known = ", ".join(isa.name for isa in runnable)
    raise UserError(
        f"{spelled('target_isa')} {name}: tactics are timed where an engine is built, and this processor runs "
        f"{known} only; "
        "build on one that has it"
    )
