"""Engines built here for lesser processors: their code keeps to its instruction set, and computes the same."""

from __future__ import annotations

import json
import platform
import re
import shutil
import zipfile

import pytest

from opt_trt.backends import open_engine
from opt_trt.plugins.cpu.isa import runnable_isas, target_isa
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from tests._processes import run
from tests.engine._libraries import plugin_library
from tests.engine._oracle import assert_same_or_tie, reference_ids
from tests.engine.conftest import random_prompts

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 instruction sets")

# Mnemonics beyond SSE2, in objdump's words: all of AVX begins with v, what is left is SSE3 to SSE4.2, POPCNT and BMI.
# (tzcnt is not among them: it is what `rep bsf` is shown as, which runs anywhere.)
BEYOND_SSE2 = re.compile(
    r"v(?!err|erw|mcall|mmcall)|pshufb|ph(add|sub)|palignr|pabs|pmulhrsw|psign|pmaddubsw|h(add|sub)p|addsubp|mov(ddup|s[hl]dup)|"
    r"lddqu|pextr[bdq]|pinsr[bdq]|ptest|pmov[sz]x|pm(in|ax)(sb|sd|ud|uw)|pmull?dq?$|pcmp(eqq|gtq|[ei]str)|packusdw|round[sp]|"
    r"p?blend|dpp[sd]|insertps|extractps|mpsadbw|phminpos|crc32|popcnt|movntdqa|andn$|bextr|bls|lzcnt|movbe|mulx|pdep|pext$|"
    r"[rs][ah][rl]x|rorx"
)
ALLOWED = {"pmuludq"}
FORBIDDEN = {  # by instruction set: what may not be found in a line of mnemonic and operands
    "avx2": lambda mnemonic, operands: "zmm" in operands or "%k" in operands,
    "generic": lambda mnemonic, operands: mnemonic not in ALLOWED and BEYOND_SSE2.match(mnemonic) is not None,
}
LESSER = [isa.name for isa in runnable_isas() if isa.name in FORBIDDEN]


def instructions(library):
    """Triples of function, mnemonic and operands, of all code in a shared object."""
    if shutil.which("objdump") is None:
        pytest.skip("disassembling needs objdump (binutils)")
    listing, function = run("objdump", "-d", "--no-show-raw-insn", library), ""
    assert listing.returncode == 0, listing.stderr
    for line in listing.stdout.splitlines():
        _, tab, code = line.partition(":\t")
        if tab:
            mnemonic, _, operands = code.partition(" ")
            yield function, mnemonic, operands
        elif line.endswith(">:"):
            function = line


def stays_within(library, isa):
    """True if all code of a shared object keeps to an instruction set; the first strangers are shown if not."""
    found = [(mnemonic, operands) for _, mnemonic, operands in instructions(library)]
    assert len(found) > 1000, library
    return not [pair for pair in found if FORBIDDEN[isa](*pair)][:5]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The programs of an engine, as files."""

    def extract(engine):
        out = tmp_path_factory.mktemp("programs")
        with zipfile.ZipFile(engine / "rank0.engine") as archive:
            names = [name for name in archive.namelist() if name.endswith(".so")]
            assert len(names) == 3
            return [archive.extract(name, out) for name in names]

    return extract


@pytest.mark.parametrize("isa", LESSER)
def test_plugin_code_stays_within_its_instruction_set(isa):
    assert stays_within(plugin_library(target_isa(isa)).path, isa)


@pytest.mark.skipif("avx2" not in LESSER, reason="this processor has no AVX2")
def test_products_by_avx2_keep_vectors_out_of_general_registers():
    """GCC takes vectors apart that are wider than a register, eight times slower, were it not for lanes.h."""
    library = plugin_library(target_isa("avx2")).path
    tiles = [mnemonic for function, mnemonic, _ in instructions(library) if "opt_trt4tile" in function]
    multiplied = sum(mnemonic.startswith("vfmadd") for mnemonic in tiles)
    assert multiplied > 100 and not {"vpinsrq", "vpextrq", "vmovq"} & {*tiles}


@pytest.mark.slow
@pytest.mark.parametrize("isa", LESSER)
def test_code_stays_within_its_instruction_set(isa, build_engine, programs):
    engine = build_engine("pre-norm", gather_all_token_logits=True, target_isa=isa)
    device = json.loads((engine / "config.json").read_text())["device"]
    assert (device["isa"], device["march"]) == (isa, target_isa(isa).march)
    for library in (*programs(engine), *engine.glob("opt_trt_*.so")):
        assert stays_within(library, isa), library


@pytest.mark.slow
@pytest.mark.parametrize("isa", LESSER)
def test_engines_of_every_instruction_set_say_what_transformers_says(isa, build_engine, oracle):
    engine = build_engine("pre-norm", gather_all_token_logits=True, target_isa=isa)
    session, model = open_engine(engine, KvCacheLimit(max_tokens=4096)), oracle("pre-norm")
    prompts = random_prompts((1, 5, 40))
    for prompt, result in zip(prompts, generate(session, [Request(p, 8) for p in prompts]), strict=True):
        assert_same_or_tie(list(result.output_ids), *reference_ids(model, prompt, 8))


def test_what_must_not_be_there_would_be_seen():
    """The library for all of this processor has what the lesser ones must not have."""
    best = runnable_isas()[0]
    if best.name not in ("avx512", "avx2"):
        pytest.skip("this processor has nothing beyond SSE2 to find")
    library = plugin_library(best).path
    assert not stays_within(library, "avx2" if best.name == "avx512" else "generic")
