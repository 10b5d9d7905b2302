"""Metaseq files that are incomplete, damaged, of two models or not of an OPT get an error of one line."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.sources import open_source
from opt_trt.sources.canonical import canonical_tensors
from opt_trt.sources.metaseq import settings, sizes
from tests.unit._metaseq import Metaseq
from tests.unit._models import Model

FC1 = "decoder.layers.1.fc1.bias"
FLAT: dict[str, Any] = {"parts": 2, "shards": 3, "layout": "layers"}


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(directory)
    text = str(caught.value)
    assert "\n" not in text
    return text


class Changed(Metaseq):
    """Write a model; put `tensors` into the files of the last part, where None leaves a tensor out."""

    tensors: dict[str, Any]

    def part(self, part: int) -> dict[str, torch.Tensor]:
        values = super().part(part) | (self.tensors if part == self.parts - 1 else {})
        return {name: value for name, value in values.items() if value is not None}


def changed(directory: Path, tensors: dict[str, Any], **how: Any) -> Path:
    writer = Changed(Model(), **how)
    writer.tensors = tensors
    return writer.write(directory)


def with_part_of(tmp_path: Path, other: Model, **how: Any) -> Path:
    """Write two parts, of which the second one belongs to another model."""
    directory = Metaseq(Model(), parts=2, **how).write(tmp_path / "m")
    Metaseq(other, parts=2, **how).write(tmp_path / "other")
    for path in (tmp_path / "other").glob("*part-1*"):
        shutil.copy(path, directory)
    return directory


@pytest.mark.parametrize(
    ("how", "lost", "says"),
    [
        ({"parts": 4}, [1], "lacks 1 of 4 files named model_part-N: N = 1; fetch"),
        (
            {"parts": 2, "shards": 12, "layout": "layers"},
            [range(3, 9)],
            "lacks 6 of 12 files named model_part-0-shardN: N = 3, 4, 5, 6, 7 ...; fetch",
        ),
    ],
)
def test_a_hole_in_the_numbers_is_named(tmp_path: Path, how: dict[str, Any], lost: list[Any], says: str) -> None:
    writer = Metaseq(Model(), **how)
    directory = writer.write(tmp_path)
    for number in lost:
        for place in [(0, shard) for shard in number] if isinstance(number, range) else [(number, 0)]:
            (directory / writer.file(*place)).unlink()
    assert says in refusal(directory)


def test_two_files_for_one_place_are_named(tmp_path: Path) -> None:
    directory = Metaseq(Model(), parts=2, layout="layers").write(tmp_path)
    shutil.copy(directory / "reshard-model_part-1.pt", directory / "reshard-model_part-1-shard0.pt")
    assert "are both part 1, shard 0; remove one" in refusal(directory)


def test_two_checkpoints_in_a_directory_are_named(tmp_path: Path) -> None:
    for step in (4000, 6000):
        Metaseq(Model(), parts=2, name=f"checkpoint_1_{step}.pt{{part}}.pt").write(tmp_path)
    assert "holds two checkpoints, checkpoint_1_4000.pt.pt and checkpoint_1_6000.pt.pt" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ({"parts": 4}, "is [16, 4] in a part, so the model is in 4 parts; found 3"),
        ({"parts": 4, "layout": "one"}, "are those of 4 x 1 files (parts x shards), found 3 x 1"),
        ({"parts": 4, "layout": "layers"}, "are those of 4 x 1 files (parts x shards), found 3 x 1"),
        ({"parts": 4, "layout": "layers", "metadata": True}, "so the model is in 4 parts; found 3"),
    ],
)
def test_missing_last_parts_are_named(tmp_path: Path, how: dict[str, Any], found: str) -> None:
    model = Model()
    directory = Metaseq(model, **how).write(tmp_path)
    (directory / "config.json").write_text(json.dumps(model.config))
    (directory / "reshard-model_part-3.pt").unlink()
    assert found in refusal(directory)


@pytest.mark.parametrize("metadata", [True, False])
def test_missing_last_shards_are_named(tmp_path: Path, metadata: bool) -> None:
    model, writer = Model(), Metaseq(Model(), **FLAT, metadata=metadata)
    directory = writer.write(tmp_path)
    (directory / "config.json").write_text(json.dumps(model.config))
    for part in range(2):
        (directory / writer.file(part, 2)).unlink()
    assert "are those of 2 x 3 files (parts x shards), found 2 x 2; fetch the missing files" in refusal(directory)


def test_vectors_that_fit_no_opt_are_named(tmp_path: Path) -> None:
    text = refusal(Metaseq(Model(), parts=2, layout="one", settings="").write(tmp_path))
    assert "(1 a file, flat_param_0 of 3224 elements) fit no known OPT in 2 x 1 files" in text
    assert "tried OPT-125M or OPT-350M" in text and "put the model's config.json beside" in text


def test_a_vocabulary_that_padding_leaves_open_is_not_guessed(tmp_path: Path) -> None:
    """17 shards may hold a row of 16 elements as padding, so two vocabularies have vectors of these lengths."""
    assert "tried hidden_size 16 with 2 layers" in refusal(Metaseq(Model(), shards=17, layout="layers").write(tmp_path))


@pytest.mark.parametrize("how", [{"layout": "one"}, {"layout": "layers"}])
def test_vectors_that_do_not_fit_what_is_stated_are_named(tmp_path: Path, how: dict[str, Any]) -> None:
    directory = Metaseq(Model(), parts=2, stated={"decoder_layers": 3}, **how).write(tmp_path)
    assert "fit no known OPT in 2 x 1 files (parts x shards): tried hidden_size 16 with 3 layers" in refusal(directory)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"layers": 3}, "num_hidden_layers is 2 in the training configuration"),
        ({"ffn": 48}, "ffn_dim is 40 in the training configuration"),
        ({"dtype": torch.float16}, "are of two models: decoder."),
    ],
)
@pytest.mark.parametrize("how", [{}, {"layout": "one"}, {"layout": "layers", "shards": 2}])
def test_parts_of_two_models_are_named(tmp_path: Path, other: dict[str, Any], says: str, how: dict[str, Any]) -> None:
    text = refusal(with_part_of(tmp_path, Model(**other), **how))
    says = says.replace("decoder.", "flat_param_0 ") if how.get("layout") == "one" else says
    assert says in text and "part-0" in text and "part-1" in text


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"layers": 3}, "decoder.layers.2.fc1.bias is missing in"),
        ({"ffn": 48}, "decoder.layers.0.fc1.bias is [20] float32 in"),
        ({"vocab": 64}, "decoder.embed_tokens.weight is [24, 16] float32 in"),
    ],
)
def test_parts_of_two_models_are_told_by_their_shapes(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    text = refusal(with_part_of(tmp_path, Model(**other), settings=""))
    assert "parts 0 and 1 are of two models" in text and says in text


@pytest.mark.parametrize("how", [{}, {"layout": "layers"}])
def test_parts_of_two_models_of_one_shape_are_told_by_what_they_replicate(tmp_path: Path, how: dict[str, Any]) -> None:
    other = Model()
    other.tensors["model.decoder.layers.1.fc2.bias"][5] += 0.25
    text = refusal(with_part_of(tmp_path, other, **how))
    assert "decoder.layers.1.fc2.bias must be the same in all parts, but part 1" in text
    assert "model_part-1.pt) differs from part 0 by up to 0.25" in text


@pytest.mark.parametrize(("how", "one", "two"), [({"parts": 2}, (0, 0), (1, 0)), (FLAT, (1, 0), (1, 1))])
def test_a_copy_under_another_number_is_named(
    tmp_path: Path, how: dict[str, Any], one: tuple[int, int], two: tuple[int, int]
) -> None:
    writer = Metaseq(Model(), **how)
    directory = writer.write(tmp_path)
    shutil.copy(directory / writer.file(*one), directory / writer.file(*two))
    text = refusal(directory)
    assert f"{writer.file(*two)} holds the same" in text and f"{writer.file(*one)}: one of them is a copy" in text


@pytest.mark.parametrize("shards", [1, 2])
def test_whole_tensors_in_shards_are_named(tmp_path: Path, shards: int) -> None:
    Metaseq(Model(), shards=2, layout="layers").write(tmp_path)
    shutil.copy(Metaseq(Model()).write(tmp_path / "other") / "reshard.pt", tmp_path / f"reshard-shard{2 - shards}.pt")
    text = refusal(tmp_path)
    assert f"reshard-shard{2 - shards}.pt is one of 2 shards but holds whole tensors" in text


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({FC1: None}, f"missing: {FC1}"),
        (
            {"decoder.layers.1.ffn_layernorm.weight": torch.zeros(40)},
            "unexpected: decoder.layers.1.ffn_layernorm.weight",
        ),
        ({"decoder.layers.0.fc2.weight": torch.zeros(16)}, "decoder.layers.0.fc2.weight is [16], expected [16, 40]"),
        ({"decoder.a\nb": torch.zeros(2)}, "has 'decoder.a\\nb' where the name of a tensor should be"),
        ({FC1: torch.zeros(41)}, f"{FC1} is [41], expected [40]"),
        ({FC1: torch.zeros(40, dtype=torch.int8)}, f"{FC1} has dtype torch.int8"),
        ({FC1: torch.zeros(0)}, f"{FC1} is of shape [0], expected a tensor with elements"),
        ({FC1: 3.0}, f"{FC1} is a builtins.float, expected a tensor with elements"),
        ({FC1: torch.zeros(2).expand(20, 2).T}, "a tensor of [2, 20] repeats the 2 elements that are stored"),
        ({"decoder.layers.0.fc2.weight": torch.zeros(40, 16).T}, "is not stored row by row (strides [1, 16])"),
        (
            {"decoder.embed_tokens.weight": None},
            "does not hold a whole OPT: it lacks the matrix decoder.embed_tokens.weight",
        ),
        ({"decoder.embed_positions.weight": torch.zeros(16)}, "lacks the matrix decoder.embed_positions.weight"),
        ({"decoder.layer_norm.weight": None}, "unexpected: decoder.layer_norm.bias"),
        ({"decoder.output_projection.weight": torch.zeros(24, 16)}, "output_projection.weight is [24, 16], expected"),
    ],
)
def test_missing_unexpected_and_odd_tensors_are_named(tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    assert says in refusal(changed(tmp_path, tensors))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 2], "list"),
        ({"model": {}}, "an empty one"),
        ({"model": [torch.zeros(2)]}, "list"),
        (torch.zeros(2), "Tensor"),
    ],
)
def test_a_file_without_named_tensors_is_named(tmp_path: Path, values: Any, found: str) -> None:
    torch.save(values, tmp_path / "reshard.pt")
    assert f"reshard.pt must hold a dictionary of tensors, found {found}; give" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"decoder_embed_dim": 32}, "hidden_size is 16 in the tensors in"),
        ({"decoder_layers": 5}, "num_hidden_layers is 2 in the tensors in"),
        ({"decoder_ffn_embed_dim": 64}, "ffn_dim is 40 in the tensors in"),
        ({"max_target_positions": 2048}, "max_position_embeddings is 12 in the tensors in"),
        ({"decoder_attention_heads": 0}, "num_attention_heads must be at least 1, found 0"),
        ({"decoder_attention_heads": 3}, "16 cannot be divided into 3 equal parts"),
        ({"activation_fn": "gelu"}, "says activation_fn = 'gelu'; only models with 'relu' can be converted"),
    ],
)
@pytest.mark.parametrize("place", ["cfg", "dict", "args"])
def test_a_training_configuration_of_another_model_is_named(
    tmp_path: Path, stated: dict[str, Any], says: str, place: str
) -> None:
    assert says in refusal(Metaseq(Model(), settings=place, stated=stated).write(tmp_path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 2 in the training configuration"),
        ({"num_attention_heads": 8}, "num_attention_heads is 4 in the training configuration"),
        ({"do_layer_norm_before": False}, "unexpected: decoder.layer_norm.weight"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
        ({"model_type": "llama"}, "must have model_type 'opt', found 'llama'"),
    ],
)
def test_a_config_json_of_another_model_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    model = Model()
    directory = Metaseq(model, parts=2).write(tmp_path)
    (directory / "config.json").write_text(json.dumps(model.config | change))
    assert says in refusal(directory)


def test_without_training_configuration_an_unpublished_size_asks_for_config_json(tmp_path: Path) -> None:
    text = refusal(Metaseq(Model(), settings="").write(tmp_path))
    assert "does not say the number of attention heads, and hidden_size 16 with 2 layers is no published OPT" in text
    assert "put the config.json of its Hugging Face model beside" in text


def test_a_published_pre_norm_model_misses_its_final_layer_norm_whatever_its_training_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model-parallel training stored that layer norms come after; that was wrong."""
    monkeypatch.setattr(settings, "PUBLISHED", (sizes.Size("OPT-tiny", 16, 2, 4, 40),))
    lost = dict.fromkeys(("decoder.layer_norm.weight", "decoder.layer_norm.bias"))
    assert "missing: decoder.final_layer_norm.weight" in refusal(changed(tmp_path, lost))


def test_without_final_layer_norm_nothing_says_where_the_others_are(tmp_path: Path) -> None:
    model = Model(pre_norm=False)
    text = refusal(Metaseq(model, stated={"decoder_normalize_before": None}).write(tmp_path))
    assert "does not say whether layer norms come before or after" in text


class Metadata(Metaseq):
    """Write a model with damaged `metadata`."""

    broken: Any

    def shard_metadata(self, vectors: Any) -> Any:
        return {"param_metadata": self.broken}


@pytest.mark.parametrize(
    "broken",
    [
        [3], 7, [{"fsdp_path": "", "params": None}], [{"fsdp_path": "", "params": {"flat_param_0": {"names": ["a"]}}}],
        [{"fsdp_path": "", "params": {"flat_param_0": {"names": ["a"], "shapes": [[2, -3]]}}}],
        [{"fsdp_path": "", "params": {"flat_param_0": {"names": ["a", "b"], "shapes": [[2, 3]]}}}],
        [{"fsdp_path": "", "params": {"flat_param_0": {"names": ["a"], "shapes": [[float("inf")]]}}}],
        [{"fsdp_path": "", "params": {"flat_param_0": {"names": [("a", "b")], "shapes": [[2]]}}}],
        [{"fsdp_path": ("a",), "params": {}}],
    ],
)  # fmt: skip
def test_metadata_that_is_not_fairscales_is_named(tmp_path: Path, broken: Any) -> None:
    writer = Metadata(Model(), **FLAT, metadata=True)
    writer.broken = broken
    assert "shard_metadata is not as fairscale writes it" in refusal(writer.write(tmp_path))


def test_metadata_of_other_vectors_is_named(tmp_path: Path) -> None:
    writer = Metadata(Model(), **FLAT, metadata=True)
    writer.broken = [{"fsdp_path": "", "params": {"flat_param_0": {"names": ["a"], "shapes": [[2, 3]]}}}]
    assert "fit no known OPT in 2 x 3 files (parts x shards): tried its shard_metadata" in refusal(
        writer.write(tmp_path)
    )


@pytest.mark.parametrize("keep", [0, 3, 200, 5000, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = Metaseq(Model(), parts=2).write(tmp_path) / "reshard-model_part-1.pt"
    path.write_bytes(path.read_bytes()[:keep])
    text = refusal(tmp_path)
    assert str(path) in text and "fetch" in text


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    source = open_source(Metaseq(Model(), parts=2, layout="layers").write(tmp_path))
    path = tmp_path / "reshard-model_part-1.pt"
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"model_part-1\.pt ends in the middle of decoder\.layers\.\d\.flat_param_0"):
        dict(canonical_tensors(source, torch.float32))


def test_a_compressed_file_and_a_strange_archive_are_named(tmp_path: Path) -> None:
    path = Metaseq(Model()).write(tmp_path) / "reshard.pt"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert "was compressed after torch wrote it" in refusal(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/readme", "hello")
    assert "is a zip archive that torch.save did not write" in refusal(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else data)
    assert "was written on a big-endian machine" in refusal(tmp_path)


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "reshard.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "a git-lfs pointer" in refusal(tmp_path)


def test_values_that_are_not_finite_are_named_with_their_files(tmp_path: Path) -> None:
    model = Model()
    model.tensors["model.decoder.layers.1.fc1.weight"][3, 4] = float("nan")
    source = open_source(Metaseq(model, parts=2).write(tmp_path))
    with pytest.raises(UserError, match=r"layers\.1\.fc1\.weight in .*part-0\.pt and 1 more of its files holds NaN"):
        dict(canonical_tensors(source, torch.float32))


@pytest.mark.parametrize(("key", "value"), [("decoder_layers", 10**9), ("decoder_embed_dim", 10**400)])
def test_settings_beyond_those_of_any_model_are_named(tmp_path: Path, key: str, value: int) -> None:
    """The table of names of a billion layers would fill the memory before the shapes are compared."""
    text = refusal(Metaseq(Model(), **FLAT, stated={key: value}).write(tmp_path))
    assert "beyond that of any model" in text
