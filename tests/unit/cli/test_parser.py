"""Command lines as people type them: dashes in values and names, other spellings, typos, flags of older scripts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from opt_trt.cli import parse
from opt_trt.commands import COMMANDS
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.summarize_flags import SummarizeConfig
from opt_trt.errors import UserError
from opt_trt.sources import open_source
from tests._processes import run_python

NEEDED = {
    ConvertConfig: "--model_dir m", BuildConfig: "--checkpoint_dir c", RunConfig: "--max_output_len 5",
    SummarizeConfig: "--test_trt_llm", DescribeConfig: "",
}  # fmt: skip


def parsed(config, words):
    return parse(config, shlex.split(f"{NEEDED[config]} {words}"))


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ('--stop_words "---"', "stop_words", (("---",),)),
        ('--stop_words "###" "---"', "stop_words", (("###", "---"),)),
        ('--stop_words "---" --stop_words "--" "-"', "stop_words", (("---",), ("--", "-"))),
        ("--stop_words=---", "stop_words", (("---",),)),
        ("--stop_words=--end", "stop_words", (("--end",),)),
        ('--bad_words "--"', "bad_words", (("--",),)),
        ('--input_text "-what"', "input_text", ("-what",)),
        ('--input_text "--- END OF --foo" "-5"', "input_text", ("--- END OF --foo", "-5")),
        ('--input_text "--what is it"', "input_text", ("--what is it",)),
        ("--end_id -1", "end_id", (-1,)),
        ("--length_penalty -0.5 --num_beams 2", "length_penalty", -0.5),
        ("--tokenizer_dir -models", "tokenizer_dir", "-models"),
        ("--max-input-length 5", "max_input_length", 5),
        ("--max-input-length=5", "max_input_length", 5),
    ],
)
def test_values_may_begin_with_a_dash_and_names_may_have_dashes(words, field, value):
    assert getattr(parsed(RunConfig, words), field) == value


def test_a_directory_may_begin_with_dashes():
    assert parsed(DescribeConfig, "-d").directories == ("-d",)
    assert parsed(DescribeConfig, "-- --d").directories == ("--d",)


@pytest.mark.parametrize("spelling", ["fp16", "half", "float16"])
def test_types_have_the_names_of_other_programs(spelling):
    assert parsed(ConvertConfig, f"--dtype {spelling}").dtype == "float16"
    assert parsed(BuildConfig, f"--gemm_plugin {spelling}").gemm_plugin == "float16"
    assert parsed(BuildConfig, f"--logits_dtype {spelling} --lookup_plugin {spelling}").logits_dtype == "float16"
    assert parsed(BuildConfig, f"--bert_attention_plugin {spelling}") == parsed(BuildConfig, "")
    assert parsed(SummarizeConfig, f"--data_type {spelling}").hf_data_type in ("fp16", "float16")


@pytest.mark.parametrize(("spelling", "name"), [("bf16", "bfloat16"), ("fp32", "float32"), ("float", "float32")])
def test_so_have_the_other_types(spelling, name):
    assert parsed(ConvertConfig, f"--dtype {spelling}").dtype == name


@pytest.mark.parametrize(
    ("config", "words", "meant"),
    [
        (ConvertConfig, "--model_dri m", "did you mean --model_dir?"),
        (ConvertConfig, "--model-dri=m", "did you mean --model_dir?"),
        (ConvertConfig, "-model_dir m", "did you mean --model_dir?"),
        (ConvertConfig, "--tp 2", "did you mean --tp_size?"),
        (RunConfig, "--temprature 2", "did you mean --temperature?"),
        (RunConfig, "--versoin", "did you mean --version?"),
        (BuildConfig, "--max_batchsize 2", "did you mean --max_batch_size?"),
        (BuildConfig, "--MAX_BATCH_SIZE 2", "did you mean --max_batch_size?"),
    ],
)
def test_a_typo_gets_a_suggestion(config, words, meant):
    unknown = words.partition("=")[0].split()[0]
    with pytest.raises(UserError, match=f"unrecognized arguments: {unknown}.*; {re.escape(meant)} .* --help lists"):
        parsed(config, words)


def test_what_is_like_no_flag_gets_none():
    with pytest.raises(UserError, match=r"^unrecognized arguments: --nonsense 5; [^;]* --help lists the flags$"):
        parsed(RunConfig, "--nonsense 5")


def test_a_value_that_looks_like_a_flag_is_told_how_to_be_given():
    with pytest.raises(UserError, match="--stop_words: expected at least one argument; write --stop_words=VALUE if"):
        parsed(RunConfig, '--stop_words "--end"')


def test_errors_show_values_as_they_were_typed():
    with pytest.raises(UserError, match="invalid int value: '-x'"):
        parsed(RunConfig, "--top_k -x")
    with pytest.raises(UserError, match="invalid choice: '-y'"):
        parsed(ConvertConfig, "--dtype -y")
    with pytest.raises(UserError, match=r"^--lora_dir -z is not supported"):
        parsed(RunConfig, "--lora_dir -z")


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        (ConvertConfig, "--use_embedding_sharing", "the head is stored beside the embedding table, .*; drop the flag"),
        (ConvertConfig, "--use_prompt_tuning", "prompt tables are not supported"),
        (ConvertConfig, "--world_size 2", "it has another name here; give --tp_size"),
        (ConvertConfig, "-in_file m", "it belongs to hf_opt_convert.py, .*; give --model_dir"),
        (ConvertConfig, "-i_g 2", "it belongs to hf_opt_convert.py, .*; give --tp_size"),
        (BuildConfig, "--use_embedding_sharing", "the head is stored beside the embedding table"),
        (BuildConfig, "--use_gemm_plugin float16", "it has another name here; give --gemm_plugin"),
        (BuildConfig, "--n_layer 12", "the checkpoint says it"),
        (BuildConfig, "--dtype float16", "the checkpoint says it; convert with --dtype"),
        (BuildConfig, "--int8_kv_cache", "the KV cache has the type of the model"),
        (RunConfig, "--hf_model_location m", "it has another name here; give --hf_model_dir"),
        (SummarizeConfig, "--hf_model_location m", "it has another name here; give --hf_model_dir"),
        (SummarizeConfig, "--dataset_path d", "it has another name here; give --dataset_dir or --dataset_cache_dir"),
    ],
)
def test_flags_of_nvidias_first_opt_scripts_are_answered(config, words, said):
    with pytest.raises(UserError, match=f"^{re.escape(words)} is not supported: {said}"):
        parsed(config, words)


def test_a_switch_that_changes_nothing_says_so(capsys):
    parsed(BuildConfig, "--use_fp8_context_fmha enable --paged_state enable --use_fused_mlp")
    assert capsys.readouterr().err.splitlines() == [
        "--use_fp8_context_fmha enable changes nothing: there is no fp8 KV cache",
        "--paged_state enable changes nothing: OPT has no use for it",
        "--use_fused_mlp changes nothing: OPT's MLP has no gate to fuse",
    ]
    parsed(BuildConfig, "--use_fp8_context_fmha disable")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_can_be_typed(name):
    config = COMMANDS[name].config_class
    assert len(config.EXAMPLES) == 2
    for words in config.EXAMPLES:
        parse(config, shlex.split(words))


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ("--tensorrt_llm_rouge1_threshold 80", "check_accuracy"),
        ("--tensorrt_llm_ppl_threshold 9 --check_accuracy", "eval_ppl"),
        ("--tensorrt_llm_ppl_threshold 9 --eval_ppl", "check_accuracy"),
    ],
)
def test_a_limit_that_would_check_nothing_is_refused(words, needed):
    with pytest.raises(UserError, match=f"^{words.split()[0]} would check nothing: give --{needed} too, or drop it$"):
        parsed(SummarizeConfig, words)


@pytest.mark.parametrize(
    ("config", "words", "lines"),
    [
        (RunConfig, "--streaming_interval 2", ("--streaming_interval 2 has no effect without --streaming",)),
        (RunConfig, "--streaming_interval 2 --streaming", ()),
        (SummarizeConfig, "--data_type fp32", ("--hf_data_type fp32 has no effect without --test_hf",)),
        (SummarizeConfig, "--data_type fp32 --test_hf --hf_model_dir m", ()),
        (ConvertConfig, "", ()),
    ],
)
def test_a_flag_without_effect_is_named(config, words, lines):
    assert parsed(config, words).idle_flags() == lines


def test_such_flags_are_named_on_stderr_before_the_command_runs():
    result = run_python("run.py", "--max_output_len", "1", "--streaming_interval", "2", "--engine_dir", "none")
    assert result.stderr.splitlines()[0] == "--streaming_interval 2 has no effect without --streaming"
    quiet = run_python("run.py", "--max_output_len", "1", "--streaming_interval", "2", "--log_level", "error")
    assert len(quiet.stderr.splitlines()) == 1


def test_how_to_shard_without_sharding_is_refused():
    with pytest.raises(UserError, match="--embedding_sharding_dim 1 says how to shard the tables, but --use_parallel_"):
        parsed(ConvertConfig, "--tp_size 2 --embedding_sharding_dim 1")


@pytest.mark.parametrize(
    ("name", "end"),
    [("facebook/opt-125m", ", hubs are not read: hf download facebook/opt-125m --local-dir opt-125m"),
     ("/none/such/model", ", hubs are not read"), ("opt-125m", ", hubs are not read")],
)  # fmt: skip
def test_a_name_on_the_hub_comes_with_the_command_that_fetches_it(name, end):
    with pytest.raises(UserError, match=f"is not a directory; give a local copy of the model{re.escape(end)}$"):
        open_source(Path(name))
