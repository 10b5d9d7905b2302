"""Alpa folders, with one NumPy file per tensor, convert to the same bytes as the model from Hugging Face."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.sources import alpa, open_source
from tests.unit._layouts import converted, npy, write_config
from tests.unit._models import Model

METASEQ = {
    "decoder.final_layer_norm": "decoder.layer_norm", "decoder.project_in.": "decoder.project_in_dim.",
    "decoder.project_out.": "decoder.project_out_dim.",
}  # fmt: skip
BIAS = "decoder.layers.1.fc1.bias"


def write(model: Model, directory: Path, order: str = "C") -> Path:
    """Write a folder as Alpa does: `np.save` into files without an extension, under metaseq's names."""
    write_config(model, directory)
    for name, tensor in model.tensors.items():
        key = name.removeprefix("model.")
        for ours, theirs in METASEQ.items():
            key = key.replace(ours, theirs) if key.startswith(ours) else key
        with (directory / key).open("wb") as file:
            np.save(file, np.asarray(tensor.numpy(), order=order))  # type: ignore[call-overload]
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_bytes_are_those_of_the_hugging_face_route(
    tmp_path: Path, dtype: torch.dtype, order: str, pre_norm: bool
) -> None:
    model = Model(dtype=dtype, pre_norm=pre_norm, width=16 if pre_norm else 8)
    expected = converted(model.write(tmp_path / "hf"), tmp_path / "expected")
    assert converted(write(model, tmp_path / "alpa", order), tmp_path / "found") == expected


def test_what_metaseq_stores_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    """These are `decoder.version`, and the tied table again as `decoder.output_projection.weight`."""
    model = Model()
    directory = write(model, tmp_path / "alpa")
    (directory / "decoder.version").write_bytes(npy(torch.tensor([3.0]), "<f4"))
    table = model.tensors["model.decoder.embed_tokens.weight"]
    (directory / "decoder.output_projection.weight").write_bytes(npy(table, "<f4"))
    expected = converted(model.write(tmp_path / "hf"), tmp_path / "expected")
    assert converted(directory, tmp_path / "found") == expected


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("fortran_order", [False, True])
def test_a_header_written_out_by_hand_is_read(tmp_path: Path, fortran_order: bool, version: int) -> None:
    """The file follows the format's specification, not NumPy's writer: magic, version, length, literal, data."""
    directory = write(Model(), tmp_path)
    weight = torch.arange(640.0).view(40, 16)
    (directory / "decoder.layers.0.fc1.weight").write_bytes(npy(weight, "<f4", fortran_order, version))
    source = open_source(directory)
    assert torch.equal(torch.cat([b.clone() for b in source.blocks("decoder.layers.0.fc1.weight")]), weight)


def test_without_a_config_the_sizes_are_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write(Model(), tmp_path)
    config = open_source(directory).config
    (directory / "config.json").unlink()
    monkeypatch.setattr("opt_trt.sources.published.PUBLISHED", {(16, 2): config})
    assert open_source(directory).config == config


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_differs_from_the_published_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write(Model(), tmp_path)
    config = open_source(directory).config
    (directory / "config.json").unlink()
    monkeypatch.setattr("opt_trt.sources.published.PUBLISHED", {(16, 2): replace(config, vocab_size=50)})
    text = refusal(directory)
    assert "are not those of the published OPT of this size: wrong: decoder.embed_tokens.weight is [48, 16]" in text


def test_an_unpublished_size_without_a_config_is_named(tmp_path: Path) -> None:
    directory = write(Model(), tmp_path)
    (directory / "config.json").unlink()
    text = refusal(directory)
    assert "holds 2 layers of hidden size 16, which is no published OPT" in text and "config.json" in text


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_an_array_of_objects_is_named_and_not_unpickled(tmp_path: Path) -> None:
    directory = write(Model(), tmp_path / "alpa")
    objects = np.empty(40, dtype=object)
    objects[:] = [Payload(tmp_path / "ran")] * 40
    with (directory / BIAS).open("wb") as file:
        np.save(file, objects, allow_pickle=True)
    assert f"{BIAS} holds '|O'; only floats" in refusal(directory)
    (directory / BIAS).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    assert f"{BIAS} is no NumPy file" in refusal(directory)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 5, 9, 60, 200, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    directory = write(Model(), tmp_path)
    path = directory / BIAS
    path.write_bytes(path.read_bytes()[:keep])
    text = refusal(directory)
    assert str(path) in text and "fetch it again" in text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("(40,)", "(-4,)", "damaged NumPy header"), ("(40,)", "(1.,)", "damaged NumPy header"),
        ("(40,)", "[40,]", "damaged NumPy header"), ("{", "[", "damaged NumPy header"),
        ("{", "{[]: 1, ", "damaged NumPy header"), ("(40,)", "(True,)", "damaged NumPy header"),
        ("(40,)", "(1is 2)", "damaged NumPy header"), ("(40,)", "(" + "9" * 50 + ",)", "damaged NumPy header"),
        ("(40,)", "(39,)", "must have 284 bytes, found 288"),
        ("'<f4'", "'<i4'", "holds '<i4'; only floats"), ("'<f4'", "'>f4'", "holds '>f4'; only floats"),
    ],
)  # fmt: skip
def test_a_damaged_header_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    directory = write(Model(), tmp_path)
    path = directory / BIAS
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    text = refusal(directory)
    assert str(path) in text and says in text


def test_missing_and_foreign_tensors_are_named(tmp_path: Path) -> None:
    directory = write(Model(), tmp_path)
    (directory / BIAS).rename(directory / "decoder.layers.1.ffn.bias")
    assert f"missing: {BIAS}; unexpected: decoder.layers.1.ffn.bias" in refusal(directory)


@pytest.mark.parametrize("name", ["opt-125m-np", "125M_np"])
def test_the_folder_around_is_named_with_the_one_to_give(tmp_path: Path, name: str) -> None:
    write(Model(), tmp_path / name)
    assert refusal(tmp_path).endswith(f"give one of them as --model_dir: {tmp_path / name}")
    assert alpa.recognizes(tmp_path / name)
