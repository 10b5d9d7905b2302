"""Which instruction sets a processor runs."""

from __future__ import annotations

import platform

import pytest

from opt_trt.backends.inductor.builder.cpu import device_of
from opt_trt.errors import UserError
from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.cpu.isa import ISAS, X86, X86_AVX2, X86_AVX512, runnable_isas, target_isa
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import Choice

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 processor flags")


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (X86_AVX512, ["avx512", "avx2", "generic"]),
        (X86_AVX2, ["avx2", "generic"]),
        (X86_AVX512 - {"avx512vl"}, ["avx2", "generic"]),
        (X86, ["generic"]),
    ],
)
def test_a_processor_runs_what_all_its_flags_allow(flags, names):
    assert [isa.name for isa in runnable_isas(flags)] == names


def test_this_processor_runs_something():
    assert runnable_isas()


def test_the_default_takes_all_a_processor_has_and_a_named_one_no_more_than_its_name_says():
    flags = X86_AVX512 | {"avx512_bf16", "avx512_vnni", "avx512_fp16"}
    assert target_isa(None, flags).extras == {"avx512_bf16", "avx512_vnni"}
    assert target_isa("avx512", flags).extras == frozenset()
    assert target_isa("avx2", flags).march == "x86-64-v3"
    assert target_isa(None, X86_AVX2 | {"avx512_bf16"}).extras == frozenset()


def test_an_instruction_set_this_processor_does_not_run_is_refused():
    with pytest.raises(
        UserError, match=r"--target_isa avx512: .* this processor runs avx2, generic only; build on one"
    ):
        target_isa("avx512", X86_AVX2)


@pytest.mark.parametrize(
    ("product", "context", "flag"),
    [
        (gemm.FP32[0], attention.FLASH, None),
        (gemm.PAIRS[0], attention.FLASH, "avx512_bf16"),
        (gemm.FIXED16[0], attention.FLASH, "avx512_vnni"),
        (gemm.FP32[0], attention.FLASH_PAIRS, "avx512_bf16"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_an_engine_names_the_flags_of_whatever_tactics_won(product, context, flag):
    plan = TacticPlan(
        {}, {"fc": Choice(product.layout, (product,))}, Choice(context.layout, (attention.UNFUSED, context))
    )
    assert {*device_of(ISAS[0], plan)["flags"].split()} == ISAS[0].needs | ({flag} if flag else set())
