"""What is built for which flags, and what is refused by name; no library is needed to decide it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from opt_trt.backends.tensorrt.engine_plan import EnginePlan, plan_engine
from opt_trt.backends.tensorrt.engine_shape import LARGEST
from opt_trt.cli import parse
from opt_trt.config.backend_answers import ANSWERS, PROPER_ANSWERS, RTX_ANSWERS
from opt_trt.config.build_flags import BuildConfig
from opt_trt.errors import UserError
from opt_trt.model.config import ModelConfig
from opt_trt.model.mapping import Mapping
from tests.unit._engines import MODEL as VALUES

MODEL = replace(
    ModelConfig.from_dict(VALUES, "here"), dtype="float16", num_attention_heads=4, max_position_embeddings=64
)
OPT_125M = replace(
    MODEL, num_hidden_layers=12, num_attention_heads=12, hidden_size=768, vocab_size=50272, max_position_embeddings=2048
)


def config_of(*flags: object) -> BuildConfig:
    return parse(BuildConfig, ["--checkpoint_dir", "c", *map(str, flags)])


def plan(*flags: object, model: ModelConfig = MODEL, is_rtx: bool = True) -> EnginePlan:
    return plan_engine(model, config_of(*flags), is_rtx)


@pytest.mark.parametrize(
    ("asked", "targets"),
    [((), (80, 86, 89, 120, 121)), ((89,), (89,)), ((120, 80, 80), (80, 120)), ((75, 86), (75, 86))],
)
def test_engines_are_for_the_gpus_asked_for_or_for_all_since_sm_80(asked, targets):
    assert plan(*(("--target_sm", *asked) if asked else ())).target_sms == targets


@pytest.mark.parametrize(
    ("target_sm", "model", "flags", "says"),
    [
        (
            "90",
            {},
            (),
            r"--target_sm 90: TensorRT-RTX has engines for SM 75, 80, 86, 89, 120, 121, not for data-center",
        ),
        ("89 100", {}, (), r"--target_sm 100: "),
        (
            "75",
            {"dtype": "bfloat16"},
            (),
            r"--target_sm 75 has kernels for float16, .*, found dtype bfloat16, weights bf",
        ),
        ("75 80", {"dtype": "float32"}, (), r"--target_sm 75 .*, found dtype float32"),
        (
            "75",
            {"quantization": {"quant_algo": "W4A16"}},
            (),
            r"found dtype float16, weights int4; drop 75, or convert",
        ),
        ("75", {}, ("--lm_head_precision", "int4"), r"found dtype float16, weights int4; drop 75"),
    ],
)
def test_a_gpu_that_cannot_run_the_model_is_named(target_sm, model, flags, says):
    with pytest.raises(UserError, match=says):
        plan("--target_sm", *target_sm.split(), *flags, model=replace(MODEL, **model))


def test_int8_weights_of_float16_are_built_for_turing():
    assert plan("--target_sm", 75, model=replace(MODEL, quantization={"quant_algo": "W8A16"})).target_sms == (75,)


def test_slots_are_what_a_cache_can_address_and_the_clip_is_said():
    shape = plan(model=OPT_125M).shape
    elements = 12 * shape.capacity * 64
    assert shape.slots * elements <= LARGEST < (shape.slots + 1) * elements
    assert shape.slots == 1364
    assert plan(model=OPT_125M).warnings == ["max_batch_size 2048 becomes 1364: a cache has at most 2^31 elements"]
    assert plan("--max_batch_size", 8, model=OPT_125M).shape.slots == 8
    assert plan("--max_batch_size", 8, model=OPT_125M).warnings == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("heads", "hidden"), [(4, 8), (12, 768), (3, 21), (72, 9216)])
@pytest.mark.parametrize("max_seq_len", [1, 64, 63])
def test_a_cache_has_a_row_beside_the_longest_sequence_and_slots_begin_at_aligned_addresses(
    dtype, heads, hidden, max_seq_len
):
    model = replace(MODEL, dtype=dtype, num_attention_heads=heads, hidden_size=hidden)
    capacity = plan("--max_seq_len", max_seq_len, model=model).shape.capacity
    assert capacity > max_seq_len
    assert capacity * hidden * (4 if dtype == "float32" else 2) % 256 == 0


def test_prompts_are_cut_to_the_limits_and_in_fp32_to_what_attention_has_memory_for():
    assert plan("--max_input_len", 40).shape.most_tokens == 40
    assert plan("--max_num_tokens", 16).shape.most_tokens == 16
    assert plan(model=OPT_125M).shape.most_tokens == 1024
    assert plan(model=replace(OPT_125M, dtype="float32")).shape.most_tokens == 512


def test_kernels_of_prompts_are_chosen_for_the_tokens_asked_for():
    assert plan("--opt_num_tokens", 24).shape.usual_tokens == 24
    assert plan().shape.usual_tokens == 32
    with pytest.raises(
        UserError, match=r"^--opt_num_tokens 65 is more than the 64 tokens that a prompt has in one step"
    ):
        plan("--opt_num_tokens", 65)


def test_flags_become_limits_and_builder_flags():
    made = plan("--gather_all_token_logits", "--logits_dtype", "float16", "--lm_head_precision", "int8")
    assert made.limits.gather_context_logits and made.limits.gather_generation_logits
    assert made.model.logits_dtype == "float16" and made.limits.lm_head_precision == "int8"
    assert plan().builder_flags == ()
    assert plan("--weight_streaming").builder_flags == ("WEIGHT_STREAMING",)
    assert plan("--weight_sparsity").builder_flags == ("SPARSE_WEIGHTS",)


def test_several_ranks_are_refused_by_name():
    with pytest.raises(UserError, match=r"^c has tp_size 2 and pp_size 1, .* convert with --tp_size 1 --pp_size 1, or"):
        plan(model=replace(MODEL, mapping=Mapping(world_size=2, tp_size=2)))


@pytest.mark.parametrize(
    ("values", "flags", "name"),
    [
        ({"quantization": {"quant_algo": "W4A16"}}, (), r"transformer\.layers\.0\.attention\.qkv\.weight; convert"),
        ({}, ("--lm_head_precision", "int4"), r"lm_head\.weight; give --lm_head_precision int8"),
    ],
)
def test_int4_that_no_group_divides_is_refused_before_anything_is_built(values, flags, name):
    with pytest.raises(UserError, match=rf"multiple of 16, found 40 in {name}"):
        plan(*flags, model=replace(MODEL, hidden_size=40, **values))


def test_fewer_than_four_heads_are_built_with_a_warning():
    assert plan(model=replace(MODEL, num_attention_heads=2)).warnings == [
        "TensorRT fuses attention of 4 heads or more, this model has 2"
    ]


@pytest.mark.parametrize(
    ("name", "is_rtx"),
    [*((name, True) for name in (*ANSWERS["tensorrt"], *RTX_ANSWERS)), *((name, False) for name in PROPER_ANSWERS)],
)
def test_what_cannot_act_is_refused_with_its_reason_and_neutral_values_are_taken(name, is_rtx):
    refusal = (ANSWERS["tensorrt"] | RTX_ANSWERS | PROPER_ANSWERS)[name]
    flag = next(f.metadata["flag"] for f in fields(BuildConfig) if f.name == name)
    numbers = {"device": "cpu", "tokens_per_block": "64", "max_beam_width": "4", "target_sm": "89",
               "input_timing_cache": "a", "output_timing_cache": "b", "tensorrt_llm_version": "1.2.1"}  # fmt: skip
    value = numbers.get(name) or next((c for c in flag.choices or () if c not in refusal.neutral), "")
    with pytest.raises(UserError) as error:
        plan(f"--{name}", *value.split(), is_rtx=is_rtx)
    assert str(error.value) == f"{f'--{name} {value}'.strip()} is not supported" + str(
        UserError(refusal.why(f"--{name}"))
    )
    for neutral in refusal.neutral:
        plan(f"--{name}", neutral, is_rtx=is_rtx)


def test_tensorrt_proper_builds_for_this_machine_and_takes_what_only_it_can_do():
    made = plan("--fast_build", "--input_timing_cache", "a", "--output_timing_cache", "b", is_rtx=False)
    assert made.target_sms == ()
