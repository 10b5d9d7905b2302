"""Products in fixed point say what those of fp32 say; --context_int8 as far as int8 goes.

Tactics are chosen as a build chooses them and run under the uncompiled graph: none of this is the compiler's doing.
"""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

from opt_trt.backends import open_engine
from opt_trt.backends.engine import read_engine_config
from opt_trt.backends.inductor.builder.cpu import device_of
from opt_trt.backends.inductor.builder.tables import rounding_line
from opt_trt.plugins.cpu.isa import target_isa
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.tactic import winners
from opt_trt.plugins.tune.rounding import product_errors
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from tests.engine._eager import choose_tactics, eager_session, prefer, tactic_plan
from tests.engine._libraries import plugin_library
from tests.engine.conftest import random_prompts

pytestmark = pytest.mark.skipif("avx512_vnni" not in target_isa().extras, reason="no fixed point without avx512_vnni")
CASES = [("pre-norm", "int8"), ("post-norm", "int4")]


@pytest.fixture
def forced(checkpoint_of, tmp_path):
    """Plans for float16 models whose products are of one family, or where a build admits it of a second one."""

    def choose(case, *families, **flags):
        checkpoint, cache = checkpoint_of(case[0], "float16", case[1]), tmp_path / "model.cache"
        choose_tactics(checkpoint, cache, **flags)  # it names all tactics then
        return tactic_plan(checkpoint, cache, input_timing_cache=str(prefer(families, cache)), **flags)

    return choose


@pytest.fixture
def context_logits(checkpoint_of):
    """Logits of prompts that are computed together; of a single token alone."""

    def compute(case, plan):
        return logits_by(eager_session(checkpoint_of(case[0], "float16", case[1]), plan))

    return compute


def logits_by(session):
    asked = [Request(prompt, 2, return_context_logits=True) for prompt in random_prompts((1, 5, 31, 70))]
    together = torch.cat([result.context_logits for result in generate(session, asked)])
    return together, generate(session, asked[:1])[0].context_logits


def chosen(plan):
    """Names of the tactics of a layer's products."""
    names = winners(plan.gemm)
    assert not any("fixed" in name for name in names.pop("head"))  # the head's weights are no integers here
    return names.values()


def flags_needed(plan):
    return device_of(target_isa(), plan)["flags"].split()


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_sixteen_bits_are_as_good_as_fp32_activations(case, forced, context_logits):
    fixed, plain = forced(case, (*gemm.FIXED16, *gemm.WORDS)), forced(case, gemm.FP32)
    assert all(name.startswith("fixed16") for names in chosen(fixed) for name in names)
    assert set(winners(fixed.gemm)["head"][-3:]) == {"words_4"}  # its weights are fp16
    assert all(name.startswith("fp32") for names in chosen(plain) for name in names)
    assert "avx512_vnni" in flags_needed(fixed) and "avx512_vnni" not in flags_needed(plain)
    (found, _), (expected, _) = context_logits(case, fixed), context_logits(case, plain)
    # An fp16 cache may round a key or a value either way: 2^-11 of it, where the sums before differ by 2^-16.
    assert (found - expected).abs().max() < 2**-10 * expected.abs().max()


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_context_int8_rounds_several_tokens_only_and_says_by_how_much(case, forced, context_logits):
    rounded = forced(case, (*gemm.FIXED16, *gemm.WORDS), gemm.FIXED8, context_int8=True)
    line = rounding_line(product_errors(rounded, plugin_library().operators()))
    assert_rounded_by_int8(line)
    for first, *others in chosen(rounded):
        assert first.startswith("fixed16") and all(name.startswith("fixed8") for name in others)
    (found, alone), (expected, exact) = context_logits(case, rounded), context_logits(case, forced(case, gemm.FP32))
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05, error  # rounded it is, and not to less than int8
    assert (alone - exact).abs().max() < 2**-10 * exact.abs().max()  # a prompt of one token is not rounded


def assert_rounded_by_int8(line):
    errors = [float(word.rstrip(",%")) for word in line.split() if word.rstrip(",").endswith("%")]
    # Steps of largest / 127 of 128 normal values, whose largest is some 2.7: 0.6 % of an activation.
    assert line.startswith("--context_int8")
    assert len(errors) == 4 and all(0.3 < error < 1.0 for error in errors), line


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_compiled_engine_computes_the_same_and_records_what_it_rounds(
    case, checkpoint_of, context_logits, build_engine, tmp_path, capsys
):
    kind, precision = case
    checkpoint, cache = checkpoint_of(kind, "float16", precision), tmp_path / "model.cache"
    choose_tactics(checkpoint, cache, context_int8=True)
    flags = {
        "context_int8": True,
        "input_timing_cache": str(prefer([(*gemm.FIXED16, *gemm.WORDS), gemm.FIXED8], cache)),
    }
    engine = build_engine(kind, "float16", precision, gather_all_token_logits=True, **flags)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--context_int8")]
    assert_rounded_by_int8(line)
    assert read_engine_config(engine).build_config.context_int8
    with closing(open_engine(engine, KvCacheLimit(max_tokens=4096))) as session:
        found = logits_by(session)
    for compiled, eager in zip(found, context_logits(case, tactic_plan(checkpoint, cache, **flags)), strict=True):
        assert (compiled - eager).abs().max() < 2**-10 * eager.abs().max()
