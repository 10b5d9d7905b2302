"""Check what the backend relies on against the facts of a release; a check that fails raises an error.

Checks run in this process and without files, so that they can be run again for thousands of changed facts.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from opt_trt.backends.engine import CONFIG, PROGRAMS
from opt_trt.backends.trtllm import process, release
from opt_trt.backends.trtllm.builder_flags import WORDS, builder_flags
from opt_trt.backends.trtllm.engine_build import BUILDER
from opt_trt.backends.trtllm.failures import FAILURES, explain
from opt_trt.backends.trtllm.release import NEWEST, OLDEST, Release
from opt_trt.checkpoint.packing import DEFERRED_ONLY
from opt_trt.checkpoint.reader import CONFIG_NAME, rank_file
from opt_trt.checkpoint.spec import LOADER_STEP, tensor_spec
from opt_trt.checkpoint.writer import DTYPE_CODES
from opt_trt.cli import parse
from opt_trt.config.build_flags import OLD_BUILDER, BuildConfig
from opt_trt.errors import UserError
from opt_trt.model.config import ModelConfig
from opt_trt.model.mapping import Mapping
from tests.trtllm import _facts, _runtime_checks
from tests.trtllm._builder import Parser, build_config, engine_config, plugin_config, plugin_values
from tests.trtllm._checkpoint import Header, compare, expected, read_values
from tests.trtllm._facts import Facts

OURS = {  # max_output_len was the builder's up to 0.11; the last three are in NVIDIA's README alone
    "backend", "context_int8", "deterministic", "device", "lm_head_precision", "packed_sm", "target_isa", "target_sm",
    "tensorrt_llm_version", "threads", "num_threads", "intra_threads", "retime",
    "max_output_len", "use_parallel_embedding", "embedding_sharding_dim", "enable_context_fmha",
}  # fmt: skip
EARLIER = OLD_BUILDER.keys() | {  # flags of releases before the newest
    "lookup_plugin", "use_lookup_plugin", "context_fmha_fp32_acc", "enable_context_fmha_fp32_acc",
    "use_custom_all_reduce", "enable_xqa", "multi_block_mode", "attention_qk_half_accumulation", "strongly_typed",
    "use_context_fmha_for_generation", "builder_opt", "builder_force_num_profiles", "weight_only_precision", "tp_size",
    "pp_size", "auto_parallel", "gpus_per_node", "cluster_key",
}  # fmt: skip
OTHER_DEFAULTS = {"gemm_plugin": (None, "auto")}  # defaults that differ: the newest release's, ours
NOT_FOR_OPT = defaultdict(  # types of plugins no OPT has
    set, gemm_plugin={"int32", "fp8", "nvfp4"}, gpt_attention_plugin={"int32"}, lookup_plugin={"int32"}
)
BASE = ("--checkpoint_dir", "c")


@dataclass(frozen=True)
class Case:
    """Flags of ours, the configuration that the builder must get, and the releases that have such flags."""

    argv: str
    expected: dict[str, Any]
    since: Release = OLDEST
    until: Release = NEWEST


PLAIN = {
    "max_batch_size": 2048, "max_input_len": 1024, "max_num_tokens": 8192, "max_beam_width": 1, "total": 2048,
    "opt_num_tokens": None, "gather_context_logits": False, "gather_generation_logits": False,
    "profiling_verbosity": "layer_names_only", "output_timing_cache": "model.cache", "input_timing_cache": None,
    "weight_sparsity": False, "enable_debug_output": False, "max_prompt_embedding_table_size": 0, "max_draft_len": 0,
    "plugin.tokens_per_block": 32, "plugin.gemm_plugin": "dtype", "plugin.gpt_attention_plugin": "dtype",
    "plugin.context_fmha": True, "plugin.remove_input_padding": True, "plugin.paged_kv_cache": True,
    "plugin.multiple_profiles": False, "plugin.lora_plugin": None, "plugin.streamingllm": False,
    "plugin.weight_only_quant_matmul_plugin": None,
}  # fmt: skip
UNSAID = {"plugin.use_paged_context_fmha": True}  # the newest release's choice if our flags make none
V = Release
CASES = (
    Case("", PLAIN),
    Case("--max_batch_size 8 --max_input_len 924 --max_seq_len 1024", {"max_batch_size": 8, "total": 1024}),
    Case("--max_input_len 924 --max_output_len 100", {"total": 1024}),
    Case("--max_num_tokens 512 --opt_num_tokens 64", {"max_num_tokens": 512, "opt_num_tokens": 64}),
    Case("--max_beam_width 4 --tokens_per_block 64", {"max_beam_width": 4, "plugin.tokens_per_block": 64}),
    Case("--gemm_plugin float16", {"plugin.gemm_plugin": "float16"}),
    Case("--gemm_plugin disable", {"plugin.gemm_plugin": None}),
    Case("--gpt_attention_plugin float16", {"plugin.gpt_attention_plugin": "float16"}),
    Case("--gpt_attention_plugin disable", {
        "plugin.gpt_attention_plugin": None, "plugin.context_fmha": False, "plugin.remove_input_padding": False,
        "plugin.paged_kv_cache": False}),
    Case("--context_fmha", {"plugin.context_fmha": True}),
    Case("--enable_context_fmha disable", {"plugin.context_fmha": False}),
    Case("--context_fmha_fp32_acc", {"plugin.context_fmha_fp32_acc": True}, until=V(0, 11)),
    Case("--use_lookup_plugin float16", {"plugin.lookup_plugin": "float16"}, until=V(0, 11)),
    Case("--kv_cache_type continuous", {"plugin.paged_kv_cache": False}),
    Case("--kv_cache_type paged --paged_kv_cache", {"plugin.paged_kv_cache": True}),
    Case("--paged_kv_cache disable", {"plugin.paged_kv_cache": False}),
    Case("--kv_cache_type disabled", {"kv_cache_type": "DISABLED"}, since=V(1, 0)),
    Case("--remove_input_padding disable", {"plugin.remove_input_padding": False}),
    Case("--use_paged_context_fmha enable", {"plugin.use_paged_context_fmha": True}),
    Case("--use_paged_context_fmha disable", {"plugin.use_paged_context_fmha": False}),
    Case("--multiple_profiles", {"plugin.multiple_profiles": True}),
    Case("--gather_context_logits", {"gather_context_logits": True, "gather_generation_logits": False}),
    Case("--gather_generation_logits", {"gather_context_logits": False, "gather_generation_logits": True}),
    Case("--gather_all_token_logits", {"gather_context_logits": True, "gather_generation_logits": True}),
    Case("--logits_dtype float16", {"args.logits_dtype": "float16"}),
    Case("--logits_dtype float32", {"args.logits_dtype": "float32"}),
    Case("--strip_plan", {"use_strip_plan": True}, since=V(0, 11)),
    Case("--weight_sparsity --enable_debug_output", {"weight_sparsity": True, "enable_debug_output": True}),
    Case("--weight_streaming", {"weight_streaming": True}, since=V(0, 11)),
    Case("--fast_build", {"args.fast_build": True}, since=V(0, 12)),
    Case("--visualize_network d", {"visualize_network": "d"}, since=V(1, 0)),
    Case("--monitor_memory", {"monitor_memory": True}, since=V(1, 0)),
    Case("--profiling_verbosity detailed", {"profiling_verbosity": "detailed"}),
    Case("--profiling_verbosity none", {"profiling_verbosity": "none"}),
    Case("--input_timing_cache a --output_timing_cache b", {"input_timing_cache": "a", "output_timing_cache": "b"}),
    Case("--workers 4 --output_dir o", {"args.workers": 4, "args.output_dir": "o", "args.checkpoint_dir": "c"}),
    *(Case(f"--log_level {level}", {"args.log_level": level})
      for level in ("verbose", "info", "warning", "error", "internal_error")),
)  # fmt: skip

MODEL = ModelConfig(
    architecture="OPTForCausalLM", dtype="float16", num_hidden_layers=2, num_attention_heads=4, hidden_size=256,
    intermediate_size=1024, vocab_size=1001, max_position_embeddings=2048, do_layer_norm_before=True,
)  # fmt: skip
TWO = Mapping(2, tp_size=2)
MODELS = {
    "plain": MODEL,
    "post-norm": replace(MODEL, do_layer_norm_before=False),
    "bfloat16, wide": replace(MODEL, dtype="bfloat16", intermediate_size=512),
    "two ranks": replace(MODEL, mapping=TWO),
    "sharded vocabulary": replace(MODEL, mapping=TWO, use_parallel_embedding=True),
    "sharded hidden": replace(MODEL, mapping=TWO, use_parallel_embedding=True, embedding_sharding_dim=1),
    "odd positions": replace(MODEL, mapping=TWO, use_parallel_embedding=True, max_position_embeddings=1023),
    "int8": replace(MODEL, quantization={"quant_algo": "W8A16"}, target_sm=80),
    "int4, two ranks": replace(MODEL, quantization={"quant_algo": "W4A16"}, target_sm=80, mapping=TWO),
    "deferred": replace(MODEL, quantization={"quant_algo": "W8A16"}, defer_quantization=True),
}


@cache
def ours_of(*argv: str) -> BuildConfig:
    """Return the configuration that our command makes of its flags; it does not depend on facts."""
    return parse(BuildConfig, [*BASE, *argv])


def check_flags_are_known(facts: Facts) -> None:
    """Check that our command takes or refuses every flag of the builder, and has no others of the newest release."""
    theirs = {n for name, flag in facts["flags"].items() for n in (name, *flag.get("aliases", ()))}
    theirs |= {name for name, field in facts["plugin_config"].items() if field["flag"]}
    ours = set(BuildConfig.REFUSED)
    for f in fields(BuildConfig):
        ours |= {f.name, *f.metadata["flag"].aliases}
    assert theirs <= ours, theirs - ours
    if Release.parse(facts["version"]) == NEWEST:
        assert ours - OURS - EARLIER == theirs, (ours - OURS - EARLIER) ^ theirs


def check_defaults_may_be_stated(facts: Facts) -> None:
    """Check that no default of the builder is refused, and that the newest release's are ours, except those listed."""
    newest = Release.parse(facts["version"]) == NEWEST
    for name, default in _stated_defaults(facts):
        argv = [f"--{name}", *([] if default is True else [str(default)])]
        config = ours_of(*argv)
        if newest and name not in OTHER_DEFAULTS:
            stated, ours = getattr(config, name, None), getattr(ours_of(), name, None)
            unsaid = ours is None and (name in BuildConfig.REFUSED or stated in ("enable", "disable"))
            assert stated == ours or unsaid, (name, stated, ours)
    for name, (theirs, ours) in OTHER_DEFAULTS.items() if newest else ():
        assert (facts["plugin_config"][name]["default"], getattr(ours_of(), name)) == (theirs, ours)


def _stated_defaults(facts: Facts) -> list[tuple[str, Any]]:
    """Return the defaults that a user can type: no switches that are off, and no flags without a value."""
    words = {True: "enable", False: "disable"}
    flags = [(name, flag["default"]) for name, flag in facts["flags"].items()]
    plugins = [(n, words.get(f["default"], f["default"])) for n, f in facts["plugin_config"].items() if f["flag"]]
    return [(name, default) for name, default in (*flags, *plugins) if default is not None and default is not False]


def check_choices_are_ours(facts: Facts) -> None:
    """Check that our choices are the builder's, except types of plugins that no OPT has."""
    parser = {f.name: f.metadata["flag"].choices for f in fields(BuildConfig)}
    theirs = {name: set(flag["choices"]) for name, flag in facts["flags"].items() if "choices" in flag}
    for name, field in facts["plugin_config"].items():
        if field["flag"] and (values := plugin_values(facts, field)) is not None:
            theirs[name] = {"disable" if value is None else value for value in values}
    newest = Release.parse(facts["version"]) == NEWEST
    for name, choices in theirs.items():
        if (ours := parser.get(name)) is not None:
            assert choices - NOT_FOR_OPT[name] == set(ours) - _lacking(facts, name), (name, choices, ours)
            assert not newest or choices >= NOT_FOR_OPT[name], (name, choices)


def _lacking(facts: Facts, name: str) -> set[str]:
    """Return our choices that 0.10 lacks: its plugins name their type."""
    return {"auto"} if Release.parse(facts["version"]) < V(0, 11) and name.endswith("_plugin") else set()


def check_translation(facts: Facts) -> None:
    """Check that our flags reach the builder's configuration, or are refused if the release lacks them."""
    here = Release.parse(facts["version"])
    parser = Parser(facts)
    for case in CASES:
        config = ours_of(*case.argv.split())
        if not case.since <= here <= case.until:
            _assert_refused(config, here)
            continue
        args = vars(_parsed(parser, builder_flags(config, MODEL, here)))
        found = _flat(facts, args)
        wanted = case.expected | (UNSAID if here == NEWEST and not case.argv else {})
        wrong = {k: (found.get(k, "missing"), v) for k, v in wanted.items() if not _same(found, k, v)}
        assert not wrong, (case.argv, wrong)


def _assert_refused(config: BuildConfig, here: Release) -> None:
    try:
        builder_flags(config, MODEL, here)
    except UserError as error:
        assert f"not {here}'s" in str(error), error
    else:
        raise AssertionError(f"{config} is not refused")


def _parsed(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    try:
        return parser.parse_args(argv)
    except SystemExit as error:
        raise AssertionError(argv) from error


def _flat(facts: Facts, args: dict[str, Any]) -> dict[str, Any]:
    """Return the builder's configuration, with plugins as `plugin.NAME` and its arguments as `args.NAME`."""
    if args.get("gather_all_token_logits"):
        raise AssertionError("both flags are said instead")
    config = build_config(facts, args, plugin_config(facts, args))
    saved = engine_config(facts, {}, config)["build_config"]
    assert config.keys() - saved.keys() == {"dry_run", "visualize_network"}
    flat = config | {f"plugin.{name}": value for name, value in config["plugin_config"].items()}
    total = config["max_input_len"] + config["max_output_len"] if "max_output_len" in config else config["max_seq_len"]
    return flat | {f"args.{name}": value for name, value in args.items()} | {"total": total}


def _same(found: dict[str, Any], key: str, value: Any) -> bool:
    """Return whether a setting has a value; `dtype` stands for the model's type, and so does `auto`."""
    if value == "dtype":
        return found.get(key) in ("auto", "float16")
    if key == "max_input_len" and "max_output_len" in found:
        return found[key] + found["max_output_len"] == found["total"]
    return key in found and type(found[key]) is type(value) and found[key] == value


def check_checkpoints(facts: Facts) -> None:
    """Check that the release reads what our converter writes, without a warning: keys, names, shapes and dtypes."""
    for name, model in MODELS.items():
        values = read_values(facts, model.to_dict())
        found = header_of(model)
        packed = any(code == "I8" for code, _ in found.values())
        warnings = list(compare(facts, found, expected(facts, values, packed)))
        assert not warnings, (name, warnings)


def header_of(model: ModelConfig) -> Header:
    """Return the header of rank 0's file."""
    return {name: (DTYPE_CODES[spec.dtype], spec.shape) for name, spec in tensor_spec(model, 0).items()}


def check_damage_is_refused(facts: Facts) -> None:
    """Check that a missing tensor, another shape and another type are refused, and an extra tensor is warned of."""
    for model in (MODELS["plain"], MODELS["int8"], MODELS["int4, two ranks"]):
        values, found = read_values(facts, model.to_dict()), header_of(model)
        wanted = expected(facts, values, packed=model.quant_algo is not None)
        for name, (code, shape) in found.items():
            others = {n: spec for n, spec in found.items() if n != name}
            _assert_raises(facts, others, wanted, "tensor_missing")
            _assert_raises(facts, found | {name: (code, (*shape[:-1], shape[-1] + 1))}, wanted, "tensor_shape")
            _assert_raises(facts, found | {name: ("F32", shape)}, wanted, "tensor_dtype")
        assert any("x" in warning for warning in compare(facts, found | {"x": ("F16", (1,))}, wanted))


def _assert_raises(facts: Facts, found: Header, wanted: Header, refusal: str) -> None:
    known = facts["refusals"][refusal]
    try:
        list(compare(facts, found, wanted))
    except RuntimeError as error:
        assert known["error"] == "RuntimeError" and known["text"] in str(error)
    else:
        raise AssertionError(f"{refusal} is not refused")


def check_unknown_keys_are_refused(facts: Facts) -> None:
    """Check that sections that become keyword arguments refuse unknown keys, and that required keys are required."""
    values = MODEL.to_dict()
    for section in ("quantization", "mapping"):
        known = facts["refusals"][f"{section}_key"]["error"]
        _assert_error(facts, values | {section: values[section] | {"unheard_of": 1}}, known)
    for key, fact in facts["pretrained_config"].items():
        if fact.get("required"):
            _assert_error(
                facts, {k: v for k, v in values.items() if k != key}, facts["refusals"]["key_missing"]["error"]
            )


def _assert_error(facts: Facts, values: dict[str, Any], name: str) -> None:
    try:
        read_values(facts, values)
    except (TypeError, KeyError) as error:
        assert type(error).__name__ == name, error
    else:
        raise AssertionError(f"{values} is not refused")


def check_failures_are_explained(facts: Facts) -> None:
    """Check that there is advice for every text with which the builder is known to fail."""
    for name, refusal in facts["refusals"].items():
        if refusal.get("text") and name not in ("tensor_extra", "tensor_dtype", *PREVENTED):
            told = explain([f"RuntimeError: {refusal['text']}"], 1, facts["version"]).text
            assert any(failure.advice in told for failure in FAILURES), told


# We refuse these before the builder runs.
PREVENTED = ("profiles_and_opt_num_tokens", "kv_cache_types_disagree", "architecture", "engine_is_none")


def check_constants(facts: Facts) -> None:
    """Check the names and numbers that are written down in the backend."""
    assert facts["modules"][BUILDER[1]] == {"names": ["main", "parse_arguments"]}
    assert f"{release.PACKAGE}.{release.BUILDER}".replace("/", ".") == f"{BUILDER[1]}.py"
    assert f"{release.PACKAGE}/version.py" == facts["version_file"]["__version__"]["file"]
    assert facts["files"] == {
        "config": {"name": CONFIG},
        "engine": {"name": PROGRAMS},
        "weights": {"name": rank_file(_facts.FACTS, 7).name.replace("7", "{rank}")},
    }
    assert CONFIG == CONFIG_NAME
    assert facts["linears"]["weight_only"] == {"multiple": LOADER_STEP, "dtype": "int8"}
    assert facts["engine_config"].keys() == {"version", "pretrained_config", "build_config"}
    assert not facts["architectures"][MODEL.architecture]["pipeline_parallel"]
    gpus = facts["refusals"]["weight_only_gpu"]
    assert range(gpus["first_sm"], gpus["last_sm"] + 1) == DEFERRED_ONLY
    assert (facts["log"]["rank_built"]["text"], facts["log"]["all_built"]["text"]) == (
        process.RANK_BUILT, process.ALL_BUILT + ": ",
    )  # fmt: skip


CHECKS: dict[str, Callable[[Facts], None]] = {
    name.removeprefix("check_"): check
    for name, check in (globals() | vars(_runtime_checks)).items()
    if name.startswith("check_")
}


def failing(facts: Facts, checks: Sequence[str] = tuple(CHECKS)) -> str | None:
    """Return the name of the first check that the facts do not pass, or None."""
    for name in checks:
        try:
            CHECKS[name](facts)
        except Exception:  # a damaged fact may raise anything
            return name
    return None


def relied_on(here: Release) -> set[str]:
    """Return the builder's flags that this backend uses."""
    return {word.flag for word in WORDS if word.since <= here <= word.until}
