"""Networks of all kinds of OPT compute transformers' logits, as an interpreter reads their layers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from opt_trt.backends.tensorrt.bindings import HIDDEN, LOGITS, Run, Tensors
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.errors import UserError
from opt_trt.quant import MODES
from tests.unit.backends.tensorrt._interpreter import AllReduce
from tests.unit.backends.tensorrt._networks import (
    POST_NORM,
    PROJECTED,
    Steps,
    interpreted,
    make_checkpoint,
    needs_library,
    reference_model,
    save_model,
    worst_error,
)

pytestmark = needs_library

KINDS = {"pre-norm": {}, "post-norm": POST_NORM, "projected": PROJECTED}
# Logits have a standard deviation of about 0.5. In fp32 sums are in another order; in fp16 and bf16 some 30 tensors on
# the way to the logits are rounded, to 11 and 8 bits. Found: 5e-7, 1.4e-3, 1.2e-2.
TOLERANCE = {"float32": 5e-6, "float16": 5e-3, "bfloat16": 4e-2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root / kind, **sizes) for kind, sizes in KINDS.items()}


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_transformers(models, tmp_path, kind, dtype, mode):
    checkpoint = make_checkpoint(models[kind], tmp_path / "checkpoint", dtype, mode)
    error = worst_error(interpreted(checkpoint), checkpoint.config, reference_model(models[kind], dtype, mode))
    assert error < TOLERANCE[dtype]


def _sizes(hidden: int, heads: int, ffn: int, **others: object) -> dict[str, object]:
    return {"hidden_size": hidden, "word_embed_proj_dim": hidden, "num_attention_heads": heads, "ffn_dim": ffn} | others


# Heads of 12, 20, 80 and 128; one head; odd vocabularies and feed-forward sizes; groups of 16 to 128; gelu.
SHAPES = {
    "one head": (_sizes(16, 1, 16, vocab_size=3), "int4"),
    "heads of 12": (_sizes(36, 3, 50, vocab_size=37), "int8"),
    "heads of 20": (_sizes(80, 4, 208, vocab_size=101), "int4"),
    "heads of 80": (_sizes(160, 2, 333), "int8"),
    "an odd mlp in int4": (_sizes(32, 2, 37), "int4"),
    "heads of 128": (_sizes(256, 2, 96, num_hidden_layers=1), "int4"),
    "untied head": ({"tie_word_embeddings": False}, None),
    "untied head of a projected model": (PROJECTED | {"tie_word_embeddings": False}, "int8"),
    "gelu": ({"activation_function": "gelu"}, None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_models_of_all_sizes_compute_logits_of_transformers(tmp_path, name):
    sizes, mode = SHAPES[name]
    model_dir = save_model(tmp_path / "model", std=0.1, **sizes)
    checkpoint = make_checkpoint(model_dir, tmp_path / "checkpoint", "float32", mode)
    error = worst_error(interpreted(checkpoint), checkpoint.config, reference_model(model_dir, "float32", mode))
    assert error < TOLERANCE["float32"]


def test_int4_with_features_that_no_group_divides_is_refused_by_name(tmp_path):
    model_dir = save_model(tmp_path / "model", **_sizes(36, 3, 48))
    checkpoint = make_checkpoint(model_dir, tmp_path / "checkpoint", "float16", "int4")
    with pytest.raises(UserError, match=r"multiple of 16, found 36 in transformer\.layers\.0\.attention\.qkv\.weight"):
        interpreted(checkpoint)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_mode", ["int8", "int4"])
def test_a_quantized_head_multiplies_dequantized_weights(models, tmp_path, kind, head_mode):
    checkpoint = make_checkpoint(models[kind], tmp_path / "checkpoint", "float32")
    run = interpreted(checkpoint, head_mode=MODES[head_mode])
    model = reference_model(models[kind], "float32", head_mode=head_mode)
    assert worst_error(run, checkpoint.config, model) < TOLERANCE["float32"]


def _first_step(checkpoint: Checkpoint, **options: object) -> Tensors:
    return Steps(interpreted(checkpoint, **options), checkpoint.config).prompt(0, [5, 6, 7], 0, [2, 0])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("logits_dtype", ["float16", "float32"])
def test_logits_are_rounded_to_the_type_that_was_asked_for(models, tmp_path, dtype, logits_dtype):
    checkpoint = make_checkpoint(models["pre-norm"], tmp_path / "checkpoint", dtype)
    assert _first_step(checkpoint, logits_dtype=logits_dtype)[LOGITS].dtype == getattr(torch, logits_dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hidden_output_is_what_the_head_multiplies(models, tmp_path, kind):
    checkpoint = make_checkpoint(models[kind], tmp_path / "checkpoint", "float32")
    outputs = _first_step(checkpoint)
    assert outputs[HIDDEN].shape == (2, checkpoint.config.hidden_size)
    product = outputs[HIDDEN] @ checkpoint.tensor("lm_head.weight").T
    torch.testing.assert_close(outputs[LOGITS], product)


class TwoRanks:
    """`Run` of two ranks in two threads, each with half of the heads; sums and logits are exchanged."""

    def __init__(self, open_rank: Callable[[int, AllReduce], Run]) -> None:
        self._barrier, self._parts = Barrier(2), [torch.empty(0)] * 2
        self._ranks = [open_rank(rank, lambda x, rank=rank: self._total(rank, x)) for rank in range(2)]

    def _total(self, rank: int, x: torch.Tensor) -> torch.Tensor:
        self._parts[rank] = x
        self._barrier.wait(20)
        total = self._parts[0] + self._parts[1]
        self._barrier.wait(20)
        return total

    def __call__(self, profile: int, feeds: Tensors, caches: Tensors) -> Tensors:
        halves = [{name: cache.chunk(2, 1)[rank] for name, cache in caches.items()} for rank in range(2)]
        with ThreadPoolExecutor(2) as pool:
            outputs = list(pool.map(lambda rank: self._ranks[rank](profile, feeds, halves[rank]), range(2)))
        return {LOGITS: torch.cat([output[LOGITS] for output in outputs], 1)[:, :61]}


def test_two_ranks_add_up_their_products_and_share_the_vocabulary(models, tmp_path):
    directory = tmp_path / "checkpoint"
    whole = make_checkpoint(models["post-norm"], directory, "float32", tp_size=2).config
    run = TwoRanks(lambda rank, all_reduce: interpreted(Checkpoint(directory, rank), all_reduce=all_reduce))
    model = reference_model(models["post-norm"], "float32")
    assert worst_error(run, whole, model) < TOLERANCE["float32"]
