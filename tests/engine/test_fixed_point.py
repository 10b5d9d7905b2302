"""Engines that multiply in fixed point say what those of fp32 say; --context_int8 as far as int8 goes."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import torch

from opt_trt.backends import open_engine
from opt_trt.backends.engine import read_engine_config
from opt_trt.plugins.cpu.isa import target_isa
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from tests.engine.conftest import choose_tactics, random_prompts

pytestmark = pytest.mark.skipif("avx512_vnni" not in target_isa().extras, reason="no fixed point without avx512_vnni")
INT8, INT4 = ("pre-norm", "int8"), ("post-norm", "int4")
SLOW = pytest.mark.slow  # two builds each


@pytest.fixture(scope="module")
def forced(checkpoint_of, build_engine, tmp_path_factory):
    """Engines of float16 whose products are of one family, or where the builder admits it of a second one."""

    def build(case, *families, **flags):
        kind, precision = case
        cache = tmp_path_factory.mktemp("forced") / "model.cache"
        choose_tactics(checkpoint_of(kind, "float16", precision), cache, **flags)  # it names all tactics then
        wanted = {tactic.name: 1e-3 / 10**order for order, family in enumerate(families) for tactic in family}
        times = json.loads(cache.read_text())
        for problem, row in times.items():
            if wanted.keys() & row.keys():  # what has no such tactic keeps the program of other engines
                times[problem] = {name: wanted.get(name, 1.0) for name in row}
        doctored = cache.with_name("doctored.cache")
        doctored.write_text(json.dumps(times))
        flags |= {"dtype": "float16", "precision": precision, "gather_all_token_logits": True}
        return build_engine(kind, input_timing_cache=str(doctored), **flags)

    return build


def context_logits(engine):
    """Of prompts that are computed together; of a single token alone."""
    asked = [Request(prompt, 2, return_context_logits=True) for prompt in random_prompts((1, 5, 31, 70))]
    with closing(open_engine(engine, KvCacheLimit(max_tokens=4096))) as session:
        together = torch.cat([result.context_logits for result in generate(session, asked)])
        return together, generate(session, asked[:1])[0].context_logits


def chosen(engine):
    tactics = {site: names for site, names in read_engine_config(engine).tactics.items() if site != "attention"}
    head = tactics.pop("head")
    assert not any("fixed" in name for name in head)  # the head's weights are no integers here
    return tactics.values()


@pytest.mark.parametrize("case", [INT8, pytest.param(INT4, marks=SLOW)], ids="-".join)
def test_sixteen_bits_are_as_good_as_fp32_activations(case, forced):
    fixed, plain = forced(case, (*gemm.FIXED16, *gemm.WORDS)), forced(case, gemm.FP32)
    assert all(name.startswith("fixed16") for names in chosen(fixed) for name in names)
    assert set(read_engine_config(fixed).tactics["head"][-3:]) == {"words_4"}  # its weights are fp16
    assert all(name.startswith("fp32") for names in chosen(plain) for name in names)
    assert "avx512_vnni" in read_engine_config(fixed).device["flags"].split()
    assert "avx512_vnni" not in read_engine_config(plain).device["flags"].split()
    (found, _), (expected, _) = context_logits(fixed), context_logits(plain)
    # An fp16 cache may round a key or a value either way: 2^-11 of it, where the sums before differ by 2^-16.
    assert (found - expected).abs().max() < 2**-10 * expected.abs().max()


@pytest.mark.parametrize("case", [pytest.param(INT8, marks=SLOW), INT4], ids="-".join)
def test_context_int8_rounds_several_tokens_only_and_says_by_how_much(case, forced, capsys):
    rounded = forced(case, (*gemm.FIXED16, *gemm.WORDS), gemm.FIXED8, context_int8=True)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--context_int8")]
    errors = [float(word.rstrip(",%")) for word in line.split() if word.rstrip(",").endswith("%")]
    # Steps of largest / 127 of 128 normal values, whose largest is some 2.7: 0.6 % of an activation.
    assert len(errors) == 4 and all(0.3 < error < 1.0 for error in errors), line
    assert read_engine_config(rounded).build_config.context_int8
    for first, *others in chosen(rounded):
        assert first.startswith("fixed16") and all(name.startswith("fixed8") for name in others)
    (found, alone), (expected, exact) = context_logits(rounded), context_logits(forced(case, gemm.FP32))
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05, error  # rounded it is, and not to less than int8
    assert (alone - exact).abs().max() < 2**-10 * exact.abs().max()  # a prompt of one token is not rounded
