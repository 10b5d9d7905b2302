"""Real engines of models of all sizes, and of one rank of two: they build, and what can be fused is fused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from opt_trt.backends.tensorrt.bindings import GENERATION
from opt_trt.backends.tensorrt.kernels import KernelTable, read_kernels
from tests.tensorrt.conftest import build_all, job_of
from tests.unit.backends.tensorrt._networks import make_checkpoint, save_model

LAYERS = 2


def _sizes(hidden: int, heads: int, ffn: int, **others: Any) -> dict[str, Any]:
    return {"hidden_size": hidden, "word_embed_proj_dim": hidden, "num_attention_heads": heads, "ffn_dim": ffn} | others


# A model's sizes, its weights, those of its head.
MODELS: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "one head": (_sizes(16, 1, 16, vocab_size=3), "int4", None),
    "heads of 12": (_sizes(60, 5, 50, vocab_size=37), "int8", None),
    "heads of 16": (_sizes(80, 5, 208, vocab_size=101), "int4", None),
    "heads of 80": (_sizes(320, 4, 333, vocab_size=1003), "int8", "int8"),
    "heads of 128": (_sizes(512, 4, 100, vocab_size=1003), "int4", "int4"),
    "gelu, untied head": (_sizes(256, 4, 640, activation_function="gelu", tie_word_embeddings=False), None, None),
    "two ranks": (_sizes(512, 8, 640), "int8", None),
}
FUSED = [name for name in MODELS if name not in ("one head", "heads of 12")]  # the library's own limits


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, KernelTable | None]:
    """Return the kernels of each model's engine; `build_all` fails if one cannot be built."""
    root, jobs = tmp_path_factory.mktemp("odd"), {}
    for name, (sizes, mode, head_mode) in MODELS.items():
        flags = {"tp_size": 2} if name == "two ranks" else {}
        checkpoint = make_checkpoint(save_model(root / name, **sizes), root / "of" / name, "float16", mode, **flags)
        jobs[name] = job_of(checkpoint.directory, root / "plan", [89], lm_head_precision=head_mode)
    return {name: read_kernels(log, LAYERS) for name, log in build_all(jobs, root).items()}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_sizes_build(tables, name):
    assert tables[name] is not None and len(tables[name].of(GENERATION)) > 8 * LAYERS


@pytest.mark.parametrize("name", FUSED)
def test_caches_and_integer_weights_are_read_where_they_lie(tables, name):
    table = tables[name]
    assert (table.fused(GENERATION), table.copies(GENERATION), table.widened(GENERATION)) == (LAYERS, 0, 0)


def test_two_ranks_add_up_two_products_a_layer(tables):
    totals = [kernel.name for kernel in tables["two ranks"].of(GENERATION) if ".total" in kernel.name]
    sites = [f"layers.{layer}.{site}" for layer in range(LAYERS) for site in ("attention.dense", "mlp.proj")]
    assert [name.split(" ")[0] for name in totals] == [f"transformer.{site}.total" for site in sites]
