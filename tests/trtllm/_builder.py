"""`trtllm-build` of a release, made of its facts: its flags, configurations and refusals, without a compiler.

Reads safetensors headers only, so that it starts in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.trtllm._checkpoint import check_rank, read_pretrained
from tests.trtllm._facts import Facts

TYPES = {"int": int, "str": str, "float": float}


@dataclass(frozen=True)
class Machine:
    """The GPUs the builder finds, and how its compiler ends."""

    gpus: int = 1
    sm: int = 80
    failure: str = ""

    @classmethod
    def of(cls, environ: dict[str, str]) -> Machine:
        """Read the machine from the environment variables of a process."""
        gpus, sm = environ.get("DOUBLE_GPUS", "1"), environ.get("DOUBLE_SM", "80")
        return cls(int(gpus), int(sm), environ.get("DOUBLE_FAILURE", ""))


class Parser(argparse.ArgumentParser):
    """A parser that exits with 2, as argparse does, but does not print the usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def __init__(self, facts: Facts) -> None:
        super().__init__(prog="build.py", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for name, flag in facts["flags"].items():
            self._add(name, flag, facts)
        for name, fact in facts["plugin_config"].items():
            if fact["flag"]:
                self._add_plugin(name, fact, facts)

    def _add(self, name: str, flag: dict[str, Any], facts: Facts) -> None:
        names = [f"--{n}" for n in (name, *flag.get("aliases", ()))]
        default = flag["default"]
        if default is False:
            self.add_argument(*names, dest=name, default=default, action="store_true")
            return
        how: dict[str, Any] = {
            "type": self._type(flag, facts),
            "choices": flag.get("choices"),
            "nargs": flag.get("nargs"),
        }
        self.add_argument(*names, dest=name, default=default, **how)

    def _add_plugin(self, name: str, fact: dict[str, Any], facts: Facts) -> None:
        default, values = fact["default"], plugin_values(facts, fact)
        if values is not None:
            choices = ["disable" if value is None else value for value in values]
            off = facts["plugin_flags"]["off"]
            if default is None and name not in off["except"]:
                default = off["default"]
            self.add_argument(f"--{name}", default=default, choices=choices)
        elif isinstance(default, bool):
            self.add_argument(f"--{name}", default="enable" if default else "disable", choices=["enable", "disable"])
        else:
            self.add_argument(f"--{name}", default=default, type=type(default))

    @staticmethod
    def _type(flag: dict[str, Any], facts: Facts) -> Any:
        kind = flag.get("type", type(flag["default"]).__name__)
        if kind not in facts["enums"]:
            return TYPES.get(kind, str)
        names = facts["enums"][kind]["values"]

        def member(text: str) -> str:
            if text.upper() not in names:
                raise argparse.ArgumentTypeError(f"Invalid value '{text}'. Expected one of {names}")
            return text.upper()

        return member


def plugin_values(facts: Facts, fact: dict[str, Any]) -> list[Any] | None:
    """Return the values that a plugin field takes; None for a switch or a number, which its default shows."""
    values = fact.get("values")
    return facts["plugin_dtypes"][values]["values"] if isinstance(values, str) else values


def plugin_config(facts: Facts, args: dict[str, Any]) -> dict[str, Any]:
    """Do what `PluginConfig.from_arguments` does: pass over unknown names, turn `enable` and `disable` into values."""
    config = {}
    for name, fact in facts["plugin_config"].items():
        value = args.get(name, fact["default"])
        values = plugin_values(facts, fact)
        switch = isinstance(fact["default"], bool) or (values is not None and True in values)
        value = {"enable": True, "disable": False if switch else None}.get(value, value)
        allowed = [True, False] if values is None and switch else values
        if allowed is not None and value not in allowed:
            raise ValueError(f"PluginConfig.{name}: {value!r} is none of {allowed}")
        config[name] = value
    return config


def build_config_class(facts: Facts) -> type:
    """Return the release's `BuildConfig`: a dataclass with its fields and defaults, which refuses other names."""

    def update_from_dict(self: Any, config: dict[str, Any]) -> None:
        for name, value in config.items():
            if not hasattr(self, name):
                raise AttributeError(f"{type(self)} object has no attribute {name}")
            setattr(self, name, value)

    known = facts["build_config"].items()
    columns = [(name, Any, field(default_factory=lambda value=fact["default"]: value)) for name, fact in known]
    return make_dataclass("BuildConfig", columns, namespace={"update_from_dict": update_from_dict})


def build_config(facts: Facts, args: dict[str, Any], plugins: dict[str, Any]) -> dict[str, Any]:
    """Return a `BuildConfig` as a dictionary; fields take their values from the flags of the same names."""
    given = {name: args[name] for name in facts["build_config"] if name in args}
    config = dict(vars(build_config_class(facts)(**given | {"plugin_config": plugins})))
    for name, flag in facts["renamed_fields"].items():
        config[name] = args.get(flag["flag"], config[name])
    for name, total in facts.get("sums", {}).items():
        parts = [args[part] for part in total["of"]]
        config[name] = config[name] if None in parts else sum(parts)
    return _with_kv_cache_type(facts, config)


def _with_kv_cache_type(facts: Facts, config: dict[str, Any]) -> dict[str, Any]:
    """Set the kind of KV cache from either of its two flags, which must agree."""
    plugins = config["plugin_config"]
    if "kv_cache_type" not in config:
        return config
    kind, paged = config["kv_cache_type"], plugins["paged_kv_cache"]
    if kind is None:
        kind = "CONTINUOUS" if paged is False else "PAGED"
    if paged is None:
        paged = kind == "PAGED"
    if paged != (kind == "PAGED"):
        _raise(facts["refusals"]["kv_cache_types_disagree"])
    return config | {"kv_cache_type": kind, "plugin_config": plugins | {"paged_kv_cache": paged, "paged_state": False}}


def main(facts: Facts, argv: list[str] | None = None) -> None:
    """Run the command; it fails like the real one, with code 1 and a traceback or with code 2 for wrong usage."""
    args = vars(Parser(facts).parse_args(argv))
    build(facts, args, Machine.of(dict(os.environ)))


def build(facts: Facts, args: dict[str, Any], machine: Machine) -> None:
    """Check everything the builder checks, and write an engine directory."""
    refusals = facts["refusals"]
    if args["gather_all_token_logits"]:
        args |= {"gather_context_logits": True, "gather_generation_logits": True}
    out = Path(args["output_dir"])
    out.mkdir(parents=True, exist_ok=True)
    if args["multiple_profiles"] == "enable" and args["opt_num_tokens"] is not None:
        raise RuntimeError(refusals["profiles_and_opt_num_tokens"]["text"])
    plugins = plugin_config(facts, args)
    checkpoint = Path(args["checkpoint_dir"])
    model = read_pretrained(facts, checkpoint / facts["files"]["config"]["name"])
    config = build_config(facts, args, plugins)
    if min(machine.gpus, args["workers"]) < 1:
        raise ValueError(refusals["no_workers"]["text"])
    if model["architecture"] not in facts["architectures"]:
        raise AssertionError(refusals["architecture"]["text"] + model["architecture"])
    log("info", args, "Set dtype to " + model["dtype"])
    for rank in range(model["mapping"]["world_size"]):
        _build_rank(facts, args, rank, (checkpoint, out), {"model": model, "config": config, "machine": machine})
    log("info", args, facts["log"]["all_built"]["text"] + "00:00:01")


def _build_rank(facts: Facts, args: dict[str, Any], rank: int, dirs: tuple[Path, Path], what: dict[str, Any]) -> None:
    model, config, machine, refusals = what["model"], what["config"], what["machine"], facts["refusals"]
    for warning in check_rank(facts, model, dirs[0], rank):
        log("warning", args, warning)
    if model["mapping"]["pp_size"] > 1 and not facts["architectures"][model["architecture"]]["pipeline_parallel"]:
        raise KeyError("hidden_states_input")  # no stage receives activations
    no = refusals.get("weight_only_gpu")
    if no and model["quantization"]["quant_algo"] and no["first_sm"] <= machine.sm <= no["last_sm"]:
        raise RuntimeError(no["text"])
    log("info", args, "Build TensorRT engine Unnamed Network 0")
    if machine.failure:
        raise RuntimeError(machine.failure)
    log("info", args, facts["log"]["rank_built"]["text"] + "Unnamed Network 0: 00:00:01")
    if rank == 0:
        path = dirs[1] / facts["files"]["config"]["name"]
        path.write_text(json.dumps(engine_config(facts, model, config), indent=4))
        Path(args["output_timing_cache"]).write_bytes(b"timings")
    (dirs[1] / facts["files"]["engine"]["name"].format(rank=rank)).write_bytes(b"engine %d" % rank)


def engine_config(facts: Facts, model: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return what `EngineConfig.to_dict` does: three keys, without values that are no property of an engine."""
    saved = {name: value for name, value in config.items() if facts["build_config"][name]["saved"]}
    values = {"version": facts["version"], "pretrained_config": model, "build_config": saved}
    return {key: values[key] for key in facts["engine_config"]}


def log(level: str, args: dict[str, Any], text: str) -> None:
    """Print a line as the builder's logger does, if the requested level shows it."""
    levels = ["verbose", "info", "warning", "error", "internal_error"]
    if levels.index(level) >= levels.index(args["log_level"]):
        print(f"[11/21/2026-10:00:00] [TRT-LLM] [{level[0].upper()}] {text}", file=sys.stderr, flush=True)


def _raise(refusal: dict[str, Any]) -> NoReturn:
    errors = {
        "AssertionError": AssertionError,
        "RuntimeError": RuntimeError,
        "KeyError": KeyError,
        "TypeError": TypeError,
    }
    raise errors[refusal["error"]](refusal.get("text", ""))
