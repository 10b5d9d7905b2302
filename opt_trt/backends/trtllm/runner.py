"""Open one of TensorRT-LLM's two runners on an engine; every runtime option is passed on or refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from opt_trt.backends.trtllm.engine_file import TrtEngine
from opt_trt.backends.trtllm.keywords import AT_EACH_CALL, BY_CALLS, CPP, OLDEST_RUNNER, OPENING, PYTHON
from opt_trt.backends.trtllm.release import INSTALL, NEWEST, PACKAGE, Release, missing
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError, spelled
from opt_trt.runtime.follow import Opening
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit


@dataclass(frozen=True)
class Runner:
    """An open engine: `live` is TensorRT-LLM's object, `each_call` has keywords for every call of its `generate`."""

    live: Any
    kind: str  # CPP or PYTHON
    release: Release
    each_call: Mapping[str, Any]


def open_runner(engine: TrtEngine, opening: Opening, rank: int) -> Runner:
    """Open this rank's runner: the C++ one, or the Python one if it is requested or the engine needs it."""
    package, runtime = _import()
    release = _known(package.__version__)
    kind = _kind(engine, opening.options, runtime)
    given = _flags(opening)
    live_class = getattr(runtime, kind)
    try:
        live = live_class.from_dir(
            engine_dir=str(engine.directory), rank=rank, **_arguments(given, live_class, kind, package.__version__)
        )
    except (RuntimeError, AssertionError, OSError) as error:
        raise UserError(_unopened(engine, package.__version__, error)) from error
    each_call = {name: given[name] for name in AT_EACH_CALL if kind == PYTHON and given[name] is not None}
    if "max_attention_window_size" in each_call:
        each_call["max_attention_window_size"] = max(each_call["max_attention_window_size"])
    return Runner(live, kind, release, each_call)


def _unopened(engine: TrtEngine, version: str, error: BaseException) -> str:
    failed = f"TensorRT-LLM {version} cannot open {engine.directory}: {first_line(error)}"
    if engine.version == version:
        return f"{failed}; {spelled('log_level')} verbose shows where"
    return f"{failed}; it was built by TensorRT-LLM {engine.version}: build it again, or install that release"


def first_line(error: BaseException) -> str:
    """Return the first line of an error of another library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _import() -> tuple[Any, Any]:
    try:
        package, runtime = import_module(PACKAGE), import_module(f"{PACKAGE}.runtime")
    except (ImportError, OSError, RuntimeError) as error:  # mpi4py raises RuntimeError without an MPI
        reason = missing() or f"{first_line(error)}; {INSTALL}"
        raise UserError(f"this is a TensorRT engine, which TensorRT-LLM runs: {reason}") from error
    if not hasattr(runtime, PYTHON):
        raise UserError(f"TensorRT-LLM {package.__version__} runs no TensorRT engines any more; {INSTALL}")
    return package, runtime


def _known(version: str) -> Release:
    release = Release.parse(version)
    if not OLDEST_RUNNER <= release <= NEWEST:
        raise UserError(f"TensorRT-LLM {version}: runners of {OLDEST_RUNNER} to {NEWEST} are known; {INSTALL}")
    return release


def _kind(engine: TrtEngine, options: RuntimeOptions, runtime: Any) -> str:
    """Choose as TensorRT-LLM's run.py: the C++ session runs only engines built for in-flight batching."""
    if options.use_py_session or options.debug_mode or not getattr(runtime, "PYTHON_BINDINGS", False):
        return PYTHON
    bindings = import_module(f"{PACKAGE}.bindings")
    config = bindings.GptJsonConfig.parse_file(engine.directory / "config.json")
    return CPP if config.model_config.supports_inflight_batching else PYTHON


def _flags(opening: Opening) -> dict[str, Any]:
    """Return the requested options, by the names of `OPENING`."""
    given = {name: value for name, value in asdict(opening.options).items() if name in OPENING}
    return given | _limits(opening.limit, opening.scheduling)


def _limits(limit: KvCacheLimit, scheduling: Scheduling) -> dict[str, Any]:
    return {
        "max_tokens_in_paged_kv_cache": limit.max_tokens,
        "kv_cache_free_gpu_memory_fraction": limit.free_fraction,
        "kv_cache_enable_block_reuse": scheduling.enable_block_reuse,
        "scheduler_policy": scheduling.policy,
        "context_chunk_size": scheduling.context_chunk_size,
    }


def _arguments(given: Mapping[str, Any], live_class: Any, kind: str, version: str) -> dict[str, Any]:
    """Return keywords of `from_dir`; refuse an option that this runner does not take, unless it has its default."""
    known = inspect.signature(live_class.from_dir).parameters
    neutral = asdict(RuntimeOptions()) | _limits(KvCacheLimit(), Scheduling())
    arguments: dict[str, Any] = {}
    for name, keyword in OPENING.items():
        parameter, value = (keyword.python if kind == PYTHON else keyword.cpp), given[name]
        if parameter is not None and parameter in known:
            arguments[parameter] = list(value) if isinstance(value, tuple) else value
        elif value != neutral[name] and not (kind == PYTHON and name in BY_CALLS):
            raise UserError(f"{spelled(name)} cannot be passed to the {kind} of TensorRT-LLM {version}; drop the flag")
    return arguments
