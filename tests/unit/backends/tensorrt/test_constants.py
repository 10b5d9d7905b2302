"""Constants of a network hold a checkpoint's values, whatever it is packed for."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from opt_trt.backends.tensorrt import constants
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.quant import MODES
from tests.unit.backends.tensorrt._networks import make_checkpoint, make_network, needs_library, save_model

PACKINGS: dict[str, dict[str, Any]] = {
    "SM 80": {"target_sm": 80},
    "SM 90": {"target_sm": 90},
    "SM 120": {"target_sm": 120},
    "not packed": {"defer_quantization": True},
}
DENSE = "transformer.layers.0.attention.dense.weight"
HEAD, VOCABULARY = "lm_head.weight", "transformer.vocab_embedding.weight"


def constants_of(checkpoint: Checkpoint, **options: Any) -> dict[str, torch.Tensor]:
    network, constants = make_network(checkpoint, **options)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    assert {layer.name for layer in layers if layer.type.name == "CONSTANT"} == constants.kept.keys()
    return dict(constants.kept)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 1}
    return save_model(tmp_path_factory.mktemp("constants") / "model", **sizes)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_every_packing_of_a_checkpoint_gives_the_same_constants(model_dir, tmp_path, mode):
    found = {}
    for packing, flags in PACKINGS.items():
        flags = {"defer_quantization": False} | flags
        found[packing] = constants_of(make_checkpoint(model_dir, tmp_path / packing, "float16", mode, **flags))
    first, *others = found.values()
    assert first[DENSE].dtype == (torch.int8 if mode == "int8" else torch.uint8)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)


@needs_library
@pytest.mark.parametrize(("mode", "shape"), [("int8", (64,)), ("int4", (1, 2, 64))])
def test_a_channel_of_zeros_has_the_scale_1_and_integers_0(tmp_path, mode, shape):
    weights = {"model.decoder.layers.0.self_attn.out_proj.weight": torch.zeros(64, 64)}
    sizes = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 1}
    model_dir = save_model(tmp_path / "model", weights=weights, **sizes)
    found = constants_of(make_checkpoint(model_dir, tmp_path / "checkpoint", "float16", mode))
    torch.testing.assert_close(found[f"{DENSE}.scale"], torch.ones(shape, dtype=torch.float16))
    assert not found[DENSE].any()


@needs_library
def test_only_quantized_weights_are_filled_up(tmp_path):
    model_dir = save_model(tmp_path / "model", ffn_dim=37)
    plain = constants_of(make_checkpoint(model_dir, tmp_path / "plain", "float16"))
    narrow = constants_of(make_checkpoint(model_dir, tmp_path / "narrow", "float16", "int8"), head_mode=MODES["int8"])
    fc, proj = "transformer.layers.0.mlp.fc", "transformer.layers.0.mlp.proj"
    sizes = [[tuple(found[f"{name}.weight"].shape[-2:]) for name in (fc, proj)] for found in (plain, narrow)]
    assert sizes == [[(37, 32), (32, 37)], [(32, 48), (48, 32)]]  # [out, in], but narrow ones are [in, out]
    assert [found[f"{fc}.bias"].shape[-1] for found in (plain, narrow)] == [37, 48]
    assert narrow[HEAD].shape == (32, 64)  # 61 logits


@needs_library
def test_a_head_equal_to_the_vocabulary_is_stored_once(model_dir, tmp_path):
    assert HEAD not in constants_of(make_checkpoint(model_dir, tmp_path / "checkpoint", "float16"))


@needs_library
def test_a_head_of_its_own_is_stored_beside_the_vocabulary(tmp_path):
    model_dir = save_model(tmp_path / "model", tie_word_embeddings=False)
    found = constants_of(make_checkpoint(model_dir, tmp_path / "checkpoint", "bfloat16"))
    assert found[HEAD].shape == found[VOCABULARY].shape
    assert not torch.equal(found[HEAD], found[VOCABULARY])


@needs_library
def test_converted_weights_lie_in_files_without_a_name(model_dir, tmp_path, monkeypatch):
    checkpoint = make_checkpoint(model_dir, tmp_path / "checkpoint", "float16", "int4")
    expected = constants_of(checkpoint)
    monkeypatch.setattr(constants, "IN_MEMORY", 0)
    directory = tmp_path / "work"
    directory.mkdir()
    found = constants_of(checkpoint, directory=directory)
    assert not list(directory.iterdir())
    assert _mapped_files(directory) == 4  # the linears of one layer
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    del found
    assert not _mapped_files(directory)


def _mapped_files(directory: Path) -> int:
    """Return how many deleted files of a directory this process has in its memory."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(str(directory) in line and line.endswith("(deleted)") for line in lines)


@needs_library
def test_a_full_disk_is_an_error_before_anything_is_written(model_dir, tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(constants, "IN_MEMORY", 0)
    monkeypatch.setattr(constants.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        constants_of(make_checkpoint(model_dir, tmp_path / "checkpoint", "float16", "int8"))
