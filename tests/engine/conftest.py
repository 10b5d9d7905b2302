"""Small models, converted and built once per test run: everything here needs a C++ compiler."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.engine._eager import eager_session, tactic_plan
from tests.engine._libraries import locked, plugin_library

# Two shapes of OPT: that of most sizes, and that of 350M.
KINDS = {
    "pre-norm": {"do_layer_norm_before": True, "hidden_size": 64, "word_embed_proj_dim": 64, "num_attention_heads": 2},
    "post-norm": {
        "do_layer_norm_before": False,
        "hidden_size": 80,
        "word_embed_proj_dim": 48,
        "num_attention_heads": 4,
    },
}
POSITIONS = 96
DETERMINISTIC = "post-norm"  # its name in `ENGINES`
EAGER_OR_SLOW = ("eager", pytest.param("compiled", marks=pytest.mark.slow))
BuildEngine = Callable[..., Path]
NamedEngine = Callable[[str], Path]


@dataclass(frozen=True)
class Case:
    """A model, how it is converted, and the flags of its build."""

    kind: str = "pre-norm"
    dtype: str = "float32"
    precision: str | None = None
    flags: Mapping[str, object] = field(default_factory=dict)


# All engines of these models, ten at most: each costs fifteen seconds of a core. A test of a choice of tactics runs it
# without a compiler (`open_eager`); a slow one may build others with `build_engine`.
ENGINES = {
    "pre-norm": Case(),
    "post-norm": Case("post-norm", flags={"deterministic": True}),
    "float16": Case(dtype="float16", flags={"logits_dtype": "float16"}),
    "int8": Case(precision="int8", flags={"lm_head_precision": "int8"}),
    "library": Case(flags={"gemm_plugin": "disable", "gpt_attention_plugin": "disable", "tokens_per_block": 8}),
    # Compiled by slow tests only.
    "bfloat16": Case(dtype="bfloat16"),
    "int4": Case("post-norm", precision="int4", flags={"lm_head_precision": "int4"}),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say once why these tests cannot run, instead of failing each."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        for item in items:
            if "tests/engine" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="building an engine needs a C++ compiler"))


@pytest.fixture(scope="session", autouse=True)
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the directory that the workers of a run share, with their compiled programs.

    A run has a new one, because a stale cache could let a broken compiler pass.
    """
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.getbasetemp()  # a worker of several has a directory of its own in the run's
        run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        patch.setenv("XDG_CACHE_HOME", str(run / "cache"))
        yield run


@pytest.fixture(scope="session")
def hf_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a random model of a kind in Hugging Face format. Biases and norms are random too, so that errors show."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            config = OPTConfig(
                vocab_size=131, num_hidden_layers=3, ffn_dim=144, max_position_embeddings=POSITIONS, dropout=0.0,
                **KINDS[kind],
            )  # fmt: skip
            torch.manual_seed(7)
            model = OPTForCausalLM(config)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.15)
            made[kind] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(made[kind])
        return made[kind]

    return make


@pytest.fixture(scope="session")
def checkpoint_of(hf_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Convert a kind of model; equal requests share one checkpoint. `precision` quantizes its linears."""

    @functools.cache
    def make(kind: str = "pre-norm", dtype: str = "float32", precision: str | None = None) -> Path:
        out = tmp_path_factory.mktemp("converted") / "checkpoint"
        quantize = {"use_weight_only": True, "weight_only_precision": precision, "defer_quantization": True}
        files = {"model_dir": str(hf_model(kind)), "output_dir": str(out)}
        convert(ConvertConfig(**files, dtype=dtype, **(quantize if precision else {})))
        return out

    return make


@pytest.fixture(scope="session")
def build_engine(checkpoint_of: Callable[..., Path], run_directory: Path) -> BuildEngine:
    """Build a kind of model with any flags, for slow tests; equal requests of all workers share one engine."""

    def make(kind: str = "pre-norm", dtype: str = "float32", precision: str | None = None, **flags: object) -> Path:
        case = repr((kind, dtype, precision, sorted(flags.items())))
        root = run_directory / "engines" / hashlib.sha256(case.encode()).hexdigest()[:16]
        with locked(root):
            if not (root / "engine").exists():
                plugin_library()
                files = {"output_dir": str(root / "engine"), "output_timing_cache": str(root / "model.cache")}
                build(BuildConfig(checkpoint_dir=str(checkpoint_of(kind, dtype, precision)), **(files | flags)))
        return root / "engine"

    return make


@pytest.fixture(scope="session")
def engine_named(build_engine: BuildEngine) -> NamedEngine:
    """Build an engine of `ENGINES`; it returns all logits."""

    def make(name: str) -> Path:
        case = ENGINES[name]
        return build_engine(case.kind, case.dtype, case.precision, gather_all_token_logits=True, **case.flags)

    return make


@pytest.fixture(scope="session")
def open_session(engine_named: NamedEngine) -> Callable[[str], DecoderSession]:
    """Build and open an engine of `ENGINES`; all tests share its session."""
    return functools.cache(lambda name: open_engine(engine_named(name), KvCacheLimit(max_tokens=4096)))


@pytest.fixture(scope="session")
def open_eager(
    checkpoint_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], DecoderSession]:
    """Open what an engine of `ENGINES` would compute, by the tactics it would have, without a compiler."""

    @functools.cache
    def make(name: str) -> DecoderSession:
        case, cache = ENGINES[name], tmp_path_factory.mktemp("eager") / "model.cache"
        checkpoint = checkpoint_of(case.kind, case.dtype, case.precision)
        return eager_session(checkpoint, tactic_plan(checkpoint, cache, **case.flags))

    return make


@pytest.fixture(scope="session")
def open_either(
    open_session: Callable[[str], DecoderSession], open_eager: Callable[[str], DecoderSession]
) -> Callable[[str, str], DecoderSession]:
    """Open an engine of `ENGINES`, `compiled` or `eager`."""
    return lambda how, name: {"compiled": open_session, "eager": open_eager}[how](name)


@pytest.fixture(scope="session")
def oracle(hf_model: Callable[[str], Path]) -> Callable[[str], OPTForCausalLM]:
    """Return the same model in transformers, in fp32."""

    def load(kind: str, dtype: torch.dtype = torch.float32) -> OPTForCausalLM:
        model = OPTForCausalLM.from_pretrained(hf_model(kind), dtype=dtype).float().eval()
        model.requires_grad_(False)
        return model

    return load


def random_prompts(lengths: tuple[int, ...], vocab: int = 131) -> list[tuple[int, ...]]:
    """Return random prompts of the given lengths, always the same ones."""
    generator = torch.Generator().manual_seed(11)
    return [tuple(torch.randint(3, vocab, (n,), generator=generator).tolist()) for n in lengths]
