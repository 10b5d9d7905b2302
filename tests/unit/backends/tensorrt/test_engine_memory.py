"""The weights of an engine are counted as the network holds them."""

from __future__ import annotations

import pytest

from opt_trt.backends.tensorrt.engine_memory import HEAD, VOCABULARY, stored_bytes
from tests.unit.backends.tensorrt._networks import PROJECTED, make_checkpoint, save_model

TABLE = 61 * 32 * 2  # bytes


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [({}, 0), ({"tie_word_embeddings": False}, 1), (PROJECTED, 1)],
    ids=["tied", "untied", "projected"],
)
def test_a_head_is_counted_unless_it_has_the_values_of_the_vocabulary(tmp_path, sizes, heads):
    checkpoint = make_checkpoint(save_model(tmp_path / "model", **sizes), tmp_path / "checkpoint", "float16")
    assert checkpoint.spec[HEAD].nbytes == checkpoint.spec[VOCABULARY].nbytes == TABLE
    others = sum(spec.nbytes for name, spec in checkpoint.spec.items() if name != HEAD)
    assert stored_bytes(checkpoint, None) == others + heads * TABLE
