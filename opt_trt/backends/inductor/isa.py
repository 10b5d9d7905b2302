"""Instruction sets an engine can be built for, and which of them this processor runs.

An engine records the processor flags its code may use: those its instruction set needs, and those a compiler adds
where the building machine has them.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Isa:
    """One instruction set: how compilers are told of it, and the processor flags it needs."""

    name: str
    march: str
    vector_bits: int  # Inductor's cpp.simdlen; 1 is scalar code
    needs: frozenset[str]

    def used_flags(self) -> list[str]:
        """The flags code built here for this instruction set may use."""
        optional = OPTIONAL if self.vector_bits == 512 else frozenset()
        return sorted(self.needs | (optional & processor_flags()))


X86_AVX2 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
X86_AVX512 = X86_AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

# Best first.
ISAS = (
    Isa("avx512", "x86-64-v4", 512, X86_AVX512),
    Isa("avx2", "x86-64-v3", 256, X86_AVX2),
    Isa("generic", "x86-64-v2", 1, frozenset({"sse4_2", "ssse3"})),
)
OTHER_PROCESSOR = Isa("generic", "native", 1, frozenset())
OPTIONAL = frozenset({"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"})


def processor_flags() -> frozenset[str]:
    """What the kernel says this processor can do."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def runnable_isas(flags: frozenset[str] | None = None) -> tuple[Isa, ...]:
    """The instruction sets this processor runs, best first."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return (OTHER_PROCESSOR,)
    flags = processor_flags() if flags is None else flags
    return tuple(isa for isa in ISAS if isa.needs <= flags)
