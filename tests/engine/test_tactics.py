"""Every tactic computes what the reference computes, on every shape a model may have."""

from __future__ import annotations

import functools
from itertools import product

import pytest
import torch

from opt_trt.host.cache import cache_dir
from opt_trt.ops import AttentionInputs, Linear, ReferenceOps
from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm.problem import STORED, GemmCall, GemmProblem
from opt_trt.plugins.native import library as native_library
from opt_trt.plugins.native.library import compile_library
from opt_trt.plugins.tactic import BUCKETS
from opt_trt.quant import MODES
from tests.engine._tactics import ISAS, operators, where_supported

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of the KV cache
# fp32 sums of a few hundred terms of order 1 in another order.
TOLERANCE = 5e-5


@pytest.fixture(params=ISAS, ids=lambda isa: isa.name)
def isa(request):
    """An instruction set: every one that runs here, or those a test is parametrized by."""
    return request.param


@pytest.fixture
def native(isa):
    return operators(isa)


# What is refused, and so is not tested below. Of a model's weights: the families that may multiply them where the
# processor has all flags, and the flag that a family needs.
FAMILIES = {
    "library": (gemm.LIBRARY,), "fp32": gemm.FP32, "pairs": gemm.PAIRS, "words": gemm.WORDS,
    "fixed16": gemm.FIXED16, "fixed8": gemm.FIXED8,
}  # fmt: skip
MULTIPLY = {
    "float32": {"library", "fp32"},
    "float16": {"library", "fp32", "words"},
    "bfloat16": {"library", "fp32", "pairs"},
    "int8": {"library", "fp32", "pairs", "fixed16", "fixed8"},
    "int4": {"library", "fp32", "pairs", "fixed16", "fixed8"},
}
NEEDS = {"pairs": "avx512_bf16", "words": "avx512_vnni", "fixed16": "avx512_vnni", "fixed8": "avx512_vnni"}


def test_families_are_all_there():
    assert sum(FAMILIES.values(), ()) == gemm.TACTICS and MULTIPLY.keys() == STORED.keys()


@pytest.mark.parametrize("weight_type", STORED)
@pytest.mark.parametrize("family", FAMILIES)
def test_gemm_tactics_are_refused_by_weights_and_by_processor(family, weight_type):
    for tactic in FAMILIES[family]:
        reason = gemm_refusal(set(NEEDS.values()), tactic, weight_type)
        assert (reason is None) == (family in MULTIPLY[weight_type]), reason
        if reason is None:
            lacking = f"needs {NEEDS[family]}" if family in NEEDS else None
            assert gemm_refusal((), tactic, weight_type) == lacking


@pytest.mark.parametrize(
    ("tactic", "dtype", "head_size", "reason"),
    [
        (attention.UNFUSED, torch.float32, 20, None),
        (attention.FLASH, torch.float32, 64, None),
        (attention.FLASH, torch.float32, 20, "needs head_size % 16 == 0, found 20"),
        (attention.FLASH_PAIRS, torch.bfloat16, 20, "needs head_size % 16 == 0, found 20"),
        (attention.FLASH_PAIRS, torch.float16, 64, "float16 queries are not rounded to bf16"),
        (attention.FLASH_PAIRS, torch.float32, 64, "float32 queries are not rounded to bf16"),
        (attention.FLASH_PAIRS, torch.bfloat16, 64, "needs avx512_bf16"),
    ],
)
def test_attention_tactics_are_refused_by_shape_type_and_processor(tactic, dtype, head_size, reason):
    assert attention_refusal((), tactic, dtype, 2, head_size, 32) == reason


def random_weight(weight_type, n, k, generator):
    """A weight as a checkpoint has it, its scale, and the fp32 matrix the two stand for."""
    weight = torch.randn(n, k, generator=generator)
    if weight_type in MODES:
        q, scale = MODES[weight_type].quantize(weight)
        return q, scale, MODES[weight_type].dequantize(q, scale)
    weight = weight.to(STORED[weight_type])
    return weight, None, weight.float()


def everywhere(native, tactic):
    """A tactic's number for every bucket of tokens."""
    return gemm.kernel_numbers(native, [tactic] * (len(BUCKETS) + 1))


def attend(native, tactic, tensors, step):
    return attention.run_attention(native, attention.kernel_number(native, tactic), tensors, step)


def test_the_library_knows_every_tactic_by_the_name_it_has_in_python_and_no_other(native):
    for number_of, tactics in ((native.gemm_tactic, gemm.TACTICS), (native.attention_tactic, attention.TACTICS)):
        names = [tactic.name for tactic in tactics if tactic.name != "library"]
        assert sorted(number_of(name) for name in names) == list(range(len(names)))
        with pytest.raises(RuntimeError, match="the plugin library has no tactic rows_4"):
            number_of("rows_4")


def test_a_number_beyond_the_tactics_and_a_kernel_of_other_types_are_refused_by_name(native):
    x, weight = torch.ones(1, 16), torch.ones(1, 16, 16)
    product = functools.partial(native.gemm, x, weight, None, None, None, False, 16, [])
    with pytest.raises(RuntimeError, match=f"expected a tactic's number below {len(gemm.TACTICS) - 1}, found 99"):
        product([99])
    with pytest.raises(RuntimeError, match="gemm: words_4 has no kernel for weights of this type"):
        product([native.gemm_tactic("words_4")])
    qkv, cache, step = ragged_step((1,), (1,), (1, 1, 1))
    with pytest.raises(RuntimeError, match="attention: flash of heads of 1"):
        attend(native, attention.FLASH, (qkv, cache), step)
    with pytest.raises(RuntimeError, match="attention: flash_pairs has no kernel for a cache of this type"):
        attend(native, attention.FLASH_PAIRS, (qkv, cache), step)


def dtype_of(weight_type):
    """The type of models with such weights that admits most tactics."""
    return weight_type if weight_type in ("float32", "float16") else "bfloat16"


def gemm_refusal(extras, tactic, weight_type):
    problem = GemmProblem("fc", 16, 16, weight_type, dtype_of(weight_type), True, False)
    return gemm.refusal(tactic, problem, extras)


@where_supported(("tactic", "weight_type"), product(gemm.TACTICS, STORED), gemm_refusal)
@pytest.mark.parametrize(("n", "k"), [(16, 16), (131, 64), (48, 5), (80, 144), (17, 1), (32, 7), (64, 256)])
def test_gemm_tactics_equal_the_plain_product(native, isa, tactic, weight_type, n, k):
    dtype = dtype_of(weight_type)
    generator = torch.Generator().manual_seed(n * k)
    weight, scale, meant = random_weight(weight_type, n, k, generator)
    for site, has_bias, has_residual in (("fc", True, False), ("proj", True, True), ("head", False, False)):
        problem = GemmProblem(site, n, k, weight_type, dtype, has_bias, has_residual)
        for tokens in (1, 2, 4, 5, 13, 37):
            x = torch.randn(tokens, k, generator=generator)
            bias = torch.randn(n, generator=generator) if has_bias else None
            residual = torch.randn(tokens, n, generator=generator) if has_residual else None
            packed = gemm.pack(weight, problem, tactic.layout)
            assert tuple(packed.shape) == gemm.packed_shape(problem, tactic.layout)
            call = GemmCall(x, Linear(packed, scale, bias), residual)
            found = gemm.run_gemm(native, problem, call, everywhere(native, tactic))
            expected = x @ meant.T
            expected = expected + bias if has_bias else expected
            expected = expected.relu() if site == "fc" else expected
            expected = expected + residual if has_residual else expected
            bound = max(TOLERANCE, tactic.tolerance) * max(1.0, float((x.abs() @ meant.abs().T).max()))
            assert (found - expected).abs().max() < bound


BY_BLOCKS = (*gemm.PAIRS, *gemm.WORDS)  # they take 1,024 tokens at once, whatever K is


OWN_WEIGHTS = [
    (tactic, "int8" if tactic.layout == gemm.QUADS else "float16" if tactic in gemm.WORDS else "bfloat16")
    for tactic in gemm.TACTICS[1:]
]


@where_supported(("tactic", "weight_type"), OWN_WEIGHTS, gemm_refusal)
def test_tokens_beyond_what_a_cache_holds_are_multiplied_as_if_alone(native, isa, tactic, weight_type):
    n, k, tokens = 32, 4096, 1047 if tactic in BY_BLOCKS else 79  # two or three parts, the last one not of whole tiles
    problem = GemmProblem("proj", n, k, weight_type, dtype_of(weight_type), True, True)
    generator = torch.Generator().manual_seed(0)
    weight, scale, _ = random_weight(weight_type, n, k, generator)
    linear = Linear(gemm.pack(weight, problem, tactic.layout), scale, torch.randn(n, generator=generator))
    x, residual = (torch.randn(tokens, width, generator=generator) for width in (k, n))

    def multiply(rows: slice) -> torch.Tensor:
        call = GemmCall(x[rows], linear, residual[rows])
        return gemm.run_gemm(native, problem, call, everywhere(native, tactic))

    alone = [multiply(slice(row, row + 1)) for row in range(tokens - 79, tokens)]
    assert torch.equal(multiply(slice(0, tokens))[-79:], torch.cat(alone))


FIXED = {**dict.fromkeys(gemm.FIXED16, 2**15 - 129), **dict.fromkeys(gemm.FIXED8, 127)}  # largest value of a group


def fixed_refusal(extras, weight_type):
    return gemm_refusal(extras, gemm.FIXED16[0], weight_type)


@where_supported(["weight_type"], zip(MODES), fixed_refusal)
@pytest.mark.parametrize("k", [128, 300])
def test_fixed_point_rounds_activations_by_groups_that_share_a_scale(native, isa, weight_type, k):
    """With activations rounded as it says, the product is exact but for fp32 sums: outliers, zeros, tiny and huge."""
    problem = GemmProblem("head", 40, k, weight_type, "float16", False, False)
    generator = torch.Generator().manual_seed(k)
    weight, scale, meant = random_weight(weight_type, 40, k, generator)
    x = torch.randn(5, k, generator=generator) * torch.tensor([1.0, 1e30, 1e-30, 1.0, 0.0])[:, None]
    x[3, 7] = 60.0
    for tactic, largest in FIXED.items():
        found = run_gemm(native, problem, (x, weight, scale), tactic)
        expected = rounded_to_fixed_point(x, largest) @ meant.T
        error = (found - expected).abs().amax(1) / (x.abs() @ meant.abs().T).amax(1).clamp(min=1e-38)
        assert error.max() < 1e-6, tactic.name


@where_supported(["weight_type"], [("int8",)], fixed_refusal)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("site", ["head", "fc"])  # without and with ReLU
def test_fixed_point_hides_nothing_that_is_not_finite(native, isa, weight_type, site, value):
    problem = GemmProblem(site, 16, 256, weight_type, "float16", False, False)
    generator = torch.Generator().manual_seed(1)
    weight, scale, _ = random_weight(weight_type, 16, 256, generator)
    x = torch.randn(3, 256, generator=generator)
    x[1, 200] = value
    for tactic in FIXED:
        finite = run_gemm(native, problem, (x, weight, scale), tactic).isfinite()
        assert not finite[1].any() and finite[[0, 2]].all(), tactic.name


[WORDS] = gemm.WORDS
with_words = where_supported([], [()], lambda extras: gemm_refusal(extras, WORDS, "float16"))


@pytest.fixture
def words(native):
    """The tactic that multiplies words, as a function of activations and fp16 weights."""

    def run(x, weight, site="head"):
        problem = GemmProblem(site, *weight.shape, "float16", "float16", False, False)
        return run_gemm(native, problem, (x, weight, None), WORDS)

    return run


@with_words
def test_words_round_activations_and_weights_by_groups_that_share_a_scale(isa, words):
    """With both rounded as it says, the product is exact but for fp32 sums: outliers, zeros, subnormal and huge."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(40, 300, generator=generator)
    weight[:4] *= torch.tensor([6e-8, 1e-4, 1e4, 0.0])[:, None]
    weight[4, 7] = 1000.0
    weight = weight.half()
    x = torch.randn(5, 300, generator=generator) * torch.tensor([1.0, 1e30, 1e-30, 1.0, 0.0])[:, None]
    x[3, 7] = 60.0
    meant = rounded_to_words(weight.float())
    expected = rounded_to_fixed_point(x, 32767) @ meant.T
    error = (words(x, weight) - expected).abs() / (x.abs() @ meant.abs().T).clamp(min=1e-38)
    assert error.max() < 1e-6


@with_words
def test_words_at_their_largest_do_not_overflow(isa, words):
    largest = torch.finfo(torch.float16).max  # all bits of its significand are set
    for sign in (1.0, -1.0):
        weight, x = torch.full((16, 256), sign * largest).half(), torch.full((4, 256), 3.0)
        assert (words(x, weight) / (256 * 3.0 * largest * sign) - 1).abs().max() < 1e-6


@with_words
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("site", ["head", "fc"])  # without and with ReLU
def test_words_hide_nothing_that_is_not_finite(isa, words, site, value):
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(3, 256, generator=generator), torch.randn(16, 256, generator=generator).half()
    x[1, 200], weight[5, 3] = value, value
    finite = words(x, weight, site).isfinite()
    assert not finite[1].any() and not finite[:, 5].any()
    assert finite[[0, 2]][:, [i for i in range(16) if i != 5]].all()


def rounded_to_words(weight):
    """What words make of weights: multiples of 2^-13 of the largest power of two in a group."""
    groups = torch.nn.functional.pad(weight, (0, -weight.shape[1] % gemm.GROUP)).view(weight.shape[0], -1, gemm.GROUP)
    step = 2.0 ** (groups.abs().amax(2, keepdim=True).log2().floor() - 13)
    return torch.where(step > 0, (groups / step).round() * step, 0.0).flatten(1)[:, : weight.shape[1]]


def rounded_to_fixed_point(x, largest):
    """What fixed-point tactics make of activations: multiples of their group's largest value by `largest`."""
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % gemm.GROUP)).view(x.shape[0], -1, gemm.GROUP)
    step = groups.abs().amax(2, keepdim=True) / largest
    return torch.where(step > 0, (groups / step).round() * step, 0.0).flatten(1)[:, : x.shape[1]]


def run_gemm(native, problem, tensors, tactic):
    x, weight, scale = tensors
    call = GemmCall(x, Linear(gemm.pack(weight, problem, tactic.layout), scale, None), None)
    return gemm.run_gemm(native, problem, call, everywhere(native, tactic))


OWN_ATTENTION = (attention.UNFUSED, *attention.FUSED)
SHAPES = ((2, 64, 32), (3, 80, 16), (1, 16, 1), (2, 20, 7), (9, 144, 40))  # heads, their size, tokens of a block


def attention_refusal(extras, tactic, dtype, heads, head_size, block):
    problem = AttentionProblem("context", heads, head_size, dtype, block, 5, 5)
    return attention.refusal(tactic, problem, extras)


@where_supported(
    ("tactic", "dtype", "heads", "head_size", "block"),
    [(tactic, dtype, *shape) for tactic, dtype, shape in product(OWN_ATTENTION, DTYPES, SHAPES)],
    attention_refusal,
)
def test_attention_tactics_equal_the_reference_on_ragged_batches(native, isa, tactic, dtype, heads, head_size, block):
    tolerance = max(TOLERANCE, tactic.tolerance)
    for queries in ((5, 1, 1, 131), (1, 1, 1, 1)):  # with prompts, and without
        qkv, cache, step = ragged_step(lens=(5, 70, 1, 200), queries=queries, shape=(heads, head_size, block))
        expected_cache, found_cache = cache.to(dtype), cache.to(dtype)
        expected = ReferenceOps().attention(qkv, expected_cache, step)
        found = attend(native, tactic, (qkv, found_cache), step)
        assert (found - expected).abs().max() < tolerance * expected.abs().max()
        assert torch.equal(found_cache.nan_to_num(9.0), expected_cache.nan_to_num(9.0))  # rounding of the append, too


@where_supported(
    ["tactic"], zip(OWN_ATTENTION), lambda extras, tactic: attention_refusal(extras, tactic, torch.bfloat16, 2, 48, 5)
)
@pytest.mark.parametrize("sought", [True, False])
def test_each_key_is_met_where_it_is_sought_and_each_value_counts_once(native, isa, tactic, sought):
    """Queries that find one key each, and queries to which all keys are alike: no rounding hides a key."""
    heads, head_size, block, tokens = 2, 48, 5, 203
    generator = torch.Generator().manual_seed(4)
    _, cache, step = ragged_step((tokens,), (tokens,), (heads, head_size, block))
    keys = torch.randn(tokens, heads, head_size, generator=generator).sign()
    values = torch.randn(tokens, heads, head_size, generator=generator).bfloat16().float()
    targets = (torch.rand(tokens, generator=generator) * torch.arange(1, tokens + 1)).long()
    qkv = torch.stack([64.0 * sought * keys[targets], keys, values], 1).flatten(1)
    means = values.cumsum(0) / torch.arange(1, tokens + 1)[:, None, None]
    found = attend(native, tactic, (qkv, cache.bfloat16()), step)
    expected = values[targets] if sought else means
    assert (found - expected.flatten(1)).abs().max() < TOLERANCE


@pytest.mark.parametrize(("heads", "head_size"), [(1, 64), (5, 80), (12, 20)])
def test_rows_have_the_same_bits_whoever_computes_their_parts(native, heads, head_size):
    """Rows are parted at 512 keys; which parts, and how many heads at once, a thread takes depends on all threads."""
    lens, queries = (1300, 512, 513, 1, 700), (1, 1, 1, 1, 3)
    qkv, cache, step = ragged_step(lens, queries, shape=(heads, head_size, 64))
    expected = ReferenceOps().attention(qkv, cache.clone(), step)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 64):
            torch.set_num_threads(number)
            found.append(attend(native, attention.UNFUSED, (qkv, cache.clone()), step))
        for s, row in enumerate(step.query_start[:-1].tolist()):  # with all threads for itself
            one = slice(row, row + queries[s])
            alone = AttentionInputs(
                step.slot_mapping[one], torch.tensor([0, queries[s]], dtype=torch.int32), step.kv_lens[s : s + 1],
                step.block_tables[s : s + 1],
            )  # fmt: skip
            out = attend(native, attention.UNFUSED, (qkv[one], cache.clone()), alone)
            assert torch.equal(out, found[0][one]), s
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (found[0] - expected).abs().max() < TOLERANCE


def ragged_step(lens, queries, shape):
    """Sequences whose blocks are scattered over a cache that holds NaN wherever nothing was written."""
    heads, head_size, block = shape
    generator = torch.Generator().manual_seed(3)
    widths = [-(-n // block) for n in lens]
    order = torch.randperm(sum(widths) + 2, generator=generator).tolist()
    tables = torch.zeros(len(lens), max(widths), dtype=torch.int32)
    cache = torch.full((len(order), 2, heads, block, head_size), torch.nan)
    slots = []
    for s, (length, width, new) in enumerate(zip(lens, widths, queries, strict=True)):
        blocks = [order.pop() for _ in range(width)]
        tables[s, :width] = torch.tensor(blocks, dtype=torch.int32)
        for p in range(length):
            cache[blocks[p // block], :, :, p % block] = torch.randn(2, heads, head_size, generator=generator)
        slots += [blocks[p // block] * block + p % block for p in range(length - new, length)]
    starts = [0]
    for new in queries:
        starts.append(starts[-1] + new)
    step = AttentionInputs(
        torch.tensor(slots), torch.tensor(starts, dtype=torch.int32), torch.tensor(lens, dtype=torch.int32), tables
    )
    return torch.randn(starts[-1], 3 * heads * head_size, generator=generator), cache, step


@pytest.mark.parametrize(("tokens", "features"), [(1, 768), (5, 20), (3, 1), (64, 1040)])
def test_rows_are_normalized_as_the_reference_does(native, tokens, features):
    generator = torch.Generator().manual_seed(features)
    x = torch.randn(tokens, features, generator=generator) * 3 + 100  # a mean that drowns squares summed before it
    weight, bias = torch.randn(2, features, generator=generator)
    found = native.layer_norm(x, weight, bias, 1e-5)
    expected = ReferenceOps().layer_norm(x.double(), weight.double(), bias.double(), 1e-5)
    assert (found - expected).abs().max() < TOLERANCE * max(1.0, float(expected.abs().max()))
    for row in range(tokens):  # alone
        assert torch.equal(native.layer_norm(x[row : row + 1], weight, bias, 1e-5)[0], found[row])


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 6e-8, 5.96e-8, 6.1e-5, 65504.0, 65519.0, 65520.0, 1e30, -3.3333, torch.inf]
)
def test_the_kv_cache_rounds_to_fp16_as_torch_does(native, value):
    cache = torch.zeros(1, 2, 1, 1, 1, dtype=torch.float16)
    one = torch.ones(1, dtype=torch.int32)
    native.attention(
        torch.full((1, 3), value), cache, torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1], dtype=torch.int32),
        one, one[None] - 1, native.attention_tactic("unfused"),
    )  # fmt: skip
    assert torch.equal(cache.flatten(), torch.full((2,), value).half())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [-0.0, 6e-8, 6.1e-5, -65504.0, 1e30, -3.3333, torch.inf, -torch.inf, torch.nan])
def test_a_lone_value_comes_out_as_the_kv_cache_stores_it(native, dtype, value):
    cache = torch.zeros(1, 2, 1, 1, 16, dtype=dtype)
    one = torch.ones(1, dtype=torch.int32)
    values = torch.full((16,), value)
    out = native.attention(
        torch.cat([torch.zeros(32), values])[None], cache, torch.zeros(1, dtype=torch.int64),
        torch.tensor([0, 1], dtype=torch.int32), one, one[None] - 1, native.attention_tactic("unfused"),
    )  # fmt: skip
    torch.testing.assert_close(out[0], values.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("count", [128, 128 * 1024, 128 * 3001])
def test_reading_reads_every_word(native, count):
    words = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(count)).to(torch.int32)
    assert native.sum_words(words) == int(words.to(torch.int64).sum()) % 2**32


def test_the_plugin_library_is_compiled_once_per_content(tmp_path, monkeypatch):
    compiled = []

    def compile_slowly(compiler, march, namespace, out):
        compiled.append(namespace)
        out.write_bytes(b"a library")

    monkeypatch.setattr(native_library, "_compile", compile_slowly)
    first = compile_library("native", tmp_path)
    assert compile_library("native", tmp_path) == first
    assert compiled == [first.namespace] and first.path == tmp_path / first.namespace / f"{first.namespace}.so"
    monkeypatch.setattr(native_library, "FLAGS", (*native_library.FLAGS, "-DELSE"))
    assert compile_library("native", tmp_path).path != first.path and len(compiled) == 2


def test_the_library_of_an_older_engine_may_lack_operators(native, isa, monkeypatch):
    later = {"not_yet_thought_of": torch.empty_like}
    monkeypatch.setattr(native_library, "SHAPES", later)
    namespace = compile_library(isa.march, cache_dir() / "plugins").namespace
    assert not hasattr(native, "not_yet_thought_of")
    native_library._register_shapes(namespace)
