"""The parts of FlagAI's tensor-parallel ranks convert to the same bytes as the model from Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.sources import open_source
from tests.unit._layouts import converted, flagai_names, flagai_parts, write_config
from tests.unit._models import Model, Tensors

SPELLINGS = {"Hugging Face's names": flagai_parts, "its own names": flagai_names}
PART = "model.decoder.layers.1.fc2.bias"


def write(model: Model, directory: Path, parts: list[Tensors], legacy: bool = False) -> Path:
    """Write parts as FlagAI's splitter does: tensors under `module`, and None for everything else in the whole file."""
    write_config(model, directory)
    for rank, part in enumerate(parts):
        values = dict.fromkeys(model.tensors) | {"module": part, "mp_world_size": len(parts)}
        torch.save(values, directory / f"pytorch_model_{rank:02}.bin", _use_new_zipfile_serialization=not legacy)
    return directory


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_bytes_are_those_of_the_hugging_face_route(
    tmp_path: Path, spelling: str, ranks: int, pre_norm: bool
) -> None:
    model = Model(pre_norm=pre_norm, width=16 if pre_norm else 8)
    expected = converted(model.write(tmp_path / "hf"), tmp_path / "expected")
    directory = write(model, tmp_path / "flagai", SPELLINGS[spelling](model.tensors, ranks))
    assert converted(directory, tmp_path / "found") == expected


def test_blocks_of_columns_are_put_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opt_trt.sources.stored.BLOCK_ELEMENTS", 40)
    model = Model()
    source = open_source(write(model, tmp_path, flagai_parts(model.tensors, 2)))
    blocks = [block.clone() for block in source.blocks("decoder.layers.1.fc2.weight")]
    assert [tuple(block.shape) for block in blocks] == [(2, 40)] * 8
    assert torch.equal(torch.cat(blocks), model.tensors["model.decoder.layers.1.fc2.weight"])


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_files_of_old_torch_and_an_untied_head_are_read(tmp_path: Path, spelling: str) -> None:
    model = Model(config={"tie_word_embeddings": False})
    expected_model = Model(config=model.config, tensors={"lm_head.weight": torch.ones(48, 16)})
    expected = converted(expected_model.write(tmp_path / "hf"), tmp_path / "expected")
    parts = [part | {"lm_head.weight": torch.ones(48, 16)} for part in SPELLINGS[spelling](model.tensors, 2)]
    directory = write(model, tmp_path / "flagai", parts, legacy=True)
    assert converted(directory, tmp_path / "found") == expected


def test_causal_masks_are_passed_over(tmp_path: Path) -> None:
    model = Model()
    parts = flagai_names(model.tensors, 2)
    for part in parts:
        part["transformer.h.0.attn.bias"] = torch.ones(1, 1, 12, 12)
        part["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    assert open_source(write(model, tmp_path, parts)).has("decoder.layers.0.fc1.bias")


def test_the_whole_file_is_preferred_to_its_parts(tmp_path: Path) -> None:
    """FlagAI's splitter writes the parts beside the whole file."""
    model = Model()
    write(model, tmp_path, flagai_parts(model.tensors, 2))
    source = open_source(model.write(tmp_path, "bin"))
    assert source.where("decoder.layers.0.fc1.bias").endswith("pytorch_model.bin")


def test_without_a_config_the_sizes_are_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    directory = write(model, tmp_path, flagai_names(model.tensors, 2))
    config = open_source(directory).config
    (directory / "config.json").unlink()
    monkeypatch.setattr("opt_trt.sources.published.PUBLISHED", {(16, 2): config})
    assert open_source(directory).config == config


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(open_source(directory).blocks(PART.removeprefix("model.")))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_part_is_named(tmp_path: Path, rank: int) -> None:
    model = Model()
    directory = write(model, tmp_path, flagai_parts(model.tensors, 4))
    (directory / f"pytorch_model_{rank:02}.bin").unlink()
    assert f"but not pytorch_model_{rank:02}.bin; fetch the parts of all ranks" in refusal(directory)


def test_a_missing_last_part_shows_in_the_shapes(tmp_path: Path) -> None:
    model = Model()
    directory = write(model, tmp_path, flagai_parts(model.tensors, 4))
    (directory / "pytorch_model_03.bin").unlink()
    assert "embed_tokens.weight is [36, 16], expected [48, 16]" in refusal(directory)


def damage_value(parts: list[Tensors]) -> None:
    parts[1][PART][3] += 1


def damage_shape(parts: list[Tensors]) -> None:
    parts[1][PART] = torch.zeros(8)


def damage_dtype(parts: list[Tensors]) -> None:
    parts[1][PART] = parts[1][PART].half()


def damage_names(parts: list[Tensors]) -> None:
    del parts[1][PART]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_value, f"{PART} in .*_01.bin differs from {PART} in .*_00.bin"),
        (damage_shape, rf"{PART} in .*_01.bin is torch.float32 \[8\], but {PART} in .*_00.bin is torch.float32 \[16\]"),
        (
            damage_dtype,
            rf"{PART} in .*_01.bin is torch.float16 \[16\], but {PART} in .*_00.bin is torch.float32 \[16\]",
        ),
        (damage_names, "_01.bin and .*_00.bin hold different tensors: decoder.layers.1.fc2.bias"),
    ],
)
def test_parts_that_do_not_belong_together_are_named(
    tmp_path: Path, damage: Callable[[list[Tensors]], None], says: str
) -> None:
    model = Model()
    parts = flagai_parts(model.tensors, 2)
    damage(parts)
    assert re.search(says, refusal(write(model, tmp_path, parts)))


@pytest.mark.parametrize("name", ["transformer.h.0.attn.c_attn.weight", "model.decoder.embed_positions.weight"])
@pytest.mark.parametrize("config", [True, False])
def test_a_tensor_without_dimensions_is_named(tmp_path: Path, name: str, config: bool) -> None:
    directory = write(Model(), tmp_path, [Model().tensors | {name: torch.tensor(1.0)}])
    if not config:
        (directory / "config.json").unlink()
    assert (name if config else "no published OPT") in refusal(directory)
