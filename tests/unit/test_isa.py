"""Which instruction sets a processor runs."""

from __future__ import annotations

import platform

import pytest

from opt_trt.backends.inductor.isa import X86_AVX2, X86_AVX512, runnable_isas

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 processor flags")
SSE = frozenset({"sse4_2", "ssse3"})


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (SSE | X86_AVX512, ["avx512", "avx2", "generic"]),
        (SSE | X86_AVX2, ["avx2", "generic"]),
        (SSE | X86_AVX512 - {"avx512vl"}, ["avx2", "generic"]),
        (SSE, ["generic"]),
    ],
)
def test_a_processor_runs_what_all_its_flags_allow(flags, names):
    assert [isa.name for isa in runnable_isas(flags)] == names


def test_this_processor_runs_something():
    assert runnable_isas()
