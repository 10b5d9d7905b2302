"""Small models, converted and built once per test run: everything here needs a C++ compiler."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.backends.inductor.builder.cpu import _choose_tactics
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.host.cache import cache_dir
from opt_trt.plugins.cpu.isa import target_isa
from opt_trt.plugins.native.library import compile_library
from opt_trt.plugins.tactic import winners
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session

# Two shapes of OPT: as most sizes are, and as 350M is.
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
BuildEngine = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say once why these tests cannot run, instead of failing each."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        for item in items:
            if "tests/engine" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="building an engine needs a C++ compiler"))


@pytest.fixture(scope="session", autouse=True)
def program_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled programs of this run only: a stale cache must not make a broken compiler pass."""
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.getbasetemp()  # a worker of several has a directory of its own in the run's
        run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        patch.setenv("XDG_CACHE_HOME", str(run / "cache"))
        yield


@pytest.fixture(scope="session")
def hf_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random model by kind, in Hugging Face format; biases and norms are random too, or errors would not show."""
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
def build_engine(checkpoint_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> BuildEngine:
    """Build a kind of model; equal requests share one engine."""
    made: dict[str, Path] = {}

    def make(kind: str = "pre-norm", dtype: str = "float32", precision: str | None = None, **flags: object) -> Path:
        key = repr((kind, dtype, precision, sorted(flags.items())))
        if key not in made:
            root = tmp_path_factory.mktemp("engine")
            flags.setdefault("output_timing_cache", str(root / "model.cache"))
            checkpoint = checkpoint_of(kind, dtype, precision)
            build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir=str(root / "engine"), **flags))
            made[key] = root / "engine"
        return made[key]

    return make


def choose_tactics(checkpoint: Path, timing_cache: Path, **flags: object) -> dict[str, list[str]]:
    """What a build would choose, by site; it leaves the times it knows in `timing_cache` and compiles no program."""
    config = BuildConfig(checkpoint_dir=str(checkpoint), output_timing_cache=str(timing_cache), **flags)
    library = compile_library(target_isa().march, cache_dir() / "plugins")
    plan, _ = _choose_tactics(Checkpoint(checkpoint).config, config, library, target_isa())
    return winners(plan.choices())


@pytest.fixture(scope="session")
def open_session(build_engine: BuildEngine) -> Callable[..., Session]:
    """Build and open; equal requests share one session."""
    opened: dict[Path, Session] = {}

    def make(kind: str = "pre-norm", dtype: str = "float32", **flags: object) -> Session:
        engine = build_engine(kind, dtype, gather_all_token_logits=True, **flags)
        if engine not in opened:
            opened[engine] = open_engine(engine, KvCacheLimit(max_tokens=4096))
        return opened[engine]

    return make


@pytest.fixture(scope="session")
def oracle(hf_model: Callable[[str], Path]) -> Callable[[str], OPTForCausalLM]:
    """The same model in transformers, fp32."""

    def load(kind: str, dtype: torch.dtype = torch.float32) -> OPTForCausalLM:
        model = OPTForCausalLM.from_pretrained(hf_model(kind), dtype=dtype).float().eval()
        model.requires_grad_(False)
        return model

    return load


def random_prompts(lengths: tuple[int, ...], vocab: int = 131) -> list[tuple[int, ...]]:
    """Seeded prompts of the given lengths."""
    generator = torch.Generator().manual_seed(11)
    return [tuple(torch.randint(3, vocab, (n,), generator=generator).tolist()) for n in lengths]
