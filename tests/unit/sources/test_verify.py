"""Finite values far above those of other layers get a warning; healthy models get none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.sources import open_source
from opt_trt.sources.canonical import canonical_tensors
from tests.unit._models import Model

LAYERS = 5
MATRIX = "model.decoder.layers.3.fc1.weight"
BIAS = "model.decoder.layers.3.self_attn.k_proj.bias"
NORM = "model.decoder.layers.3.final_layer_norm.weight"
PAD_ROW = "model.decoder.embed_positions.weight"


def model(fill: float = 0.5) -> Model:
    """Return a model in which the largest value of every tensor of every layer is `fill`."""
    made = Model(layers=LAYERS)
    for name, tensor in made.tensors.items():
        if ".layers." in name:
            tensor.clamp_(-fill, fill).view(-1)[0] = fill
    made.tensors[PAD_ROW][1] = 0
    return made


def warnings(made: Model, directory: Path, dtype: torch.dtype = torch.float32) -> list[str]:
    lines: list[str] = []
    for _ in canonical_tensors(open_source(made.write(directory)), dtype, warn=lines.append):
        pass
    return lines


def test_a_healthy_model_gets_no_warning(tmp_path: Path) -> None:
    assert warnings(model(), tmp_path) == []


def test_the_values_of_a_known_corrupted_shard_are_named_with_their_neighbours_median(tmp_path: Path) -> None:
    """fp16 values of up to 5e4 in one fc1 of the 175B once made the model write fluent nonsense."""
    damaged = model()
    damaged.tensors[MATRIX].view(-1)[500:518] = torch.linspace(-5e4, 4e4, 18)
    (line,) = warnings(damaged, tmp_path, torch.float16)
    assert line == (
        f"{MATRIX} in {tmp_path}/model.safetensors reaches 50000, 100,000 times the median of the other layers (0.5): "
        "the file may be damaged; compare its checksum, or fetch it again"
    )


def test_a_flipped_exponent_bit_is_found(tmp_path: Path) -> None:
    damaged = model()
    weight = damaged.tensors[MATRIX].half()
    weight.view(torch.int16)[7, 7] ^= 1 << 14
    damaged.tensors[MATRIX] = weight.float()
    (line,) = warnings(damaged, tmp_path, torch.float16)
    assert line.startswith(MATRIX)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [(MATRIX, 50.0, 0), (MATRIX, 50.1, 1), (BIAS, 500.0, 0), (BIAS, 500.5, 1), (NORM, -500.0, 0), (NORM, -500.5, 1)],
)
def test_matrices_may_be_100_and_vectors_1000_times_their_neighbours(
    tmp_path: Path, name: str, value: float, found: int
) -> None:
    changed = model()
    changed.tensors[name].view(-1)[3] = value
    assert len(warnings(changed, tmp_path)) == found


def test_the_first_and_last_layers_of_a_real_opt_may_differ_tenfold(tmp_path: Path) -> None:
    """Trained layers differ in scale: here a tensor has ten times or a tenth of the median scale."""
    changed = model()
    for name, tensor in changed.tensors.items():
        tensor *= 10.0 if ".layers.0." in name else 0.1 if ".layers.4." in name else 1.0
    assert warnings(changed, tmp_path) == []


def test_a_tensor_that_is_zero_in_the_other_layers_is_not_judged(tmp_path: Path) -> None:
    changed = model()
    for layer in range(LAYERS):
        changed.tensors[f"model.decoder.layers.{layer}.fc1.bias"].fill_(3.0 if layer == 2 else 0.0)
    assert warnings(changed, tmp_path) == []


def test_of_two_layers_the_other_one_is_the_measure(tmp_path: Path) -> None:
    damaged = Model(layers=2)
    damaged.tensors["model.decoder.layers.1.fc2.weight"][0, 0] = 1e3
    (line,) = warnings(damaged, tmp_path)
    assert line.startswith("model.decoder.layers.1.fc2.weight in ")


def test_a_single_layer_has_no_neighbours(tmp_path: Path) -> None:
    assert (
        warnings(Model(layers=1, tensors={"model.decoder.layers.0.fc1.bias": torch.full((40,), 1e4)}), tmp_path) == []
    )


def test_the_pad_row_of_a_published_size_must_be_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = model()
    changed.tensors[PAD_ROW][1, 4] = -0.25
    assert warnings(changed, tmp_path) == []  # a model of another size may have been initialized in another way
    monkeypatch.setattr("opt_trt.sources.verify.PUBLISHED", {(16, LAYERS): None})
    (line,) = warnings(changed, tmp_path)
    assert line.startswith(f"{PAD_ROW} in {tmp_path}/model.safetensors reaches 0.25 in row 1, which is zero in every")
    changed.tensors[PAD_ROW][1] = 0
    assert warnings(changed, tmp_path) == []


@pytest.mark.parametrize("log_level", ["info", "internal_error"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_converter_prints_warnings_to_stderr_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log_level: str, workers: int
) -> None:
    damaged = model()
    damaged.tensors[MATRIX][0, 0] = 6e4
    directory = damaged.write(tmp_path / "m")
    convert(ConvertConfig(str(directory), output_dir=str(tmp_path / "out"), log_level=log_level, workers=workers))
    printed = capsys.readouterr().err
    assert printed.startswith(f"WARNING: {MATRIX} in ") and printed.count("\n") == 1
    assert (tmp_path / "out" / "rank0.safetensors").exists()
