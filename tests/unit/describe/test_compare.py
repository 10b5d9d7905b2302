"""Two checkpoints are compared as whole models: configurations, tensors and values."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opt_trt.checkpoint.whole_model import WholeModel
from opt_trt.cli import run_main
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.convert.convert import convert
from opt_trt.describe import listing
from opt_trt.describe.compare import config_differences
from opt_trt.describe.describe import describe
from opt_trt.describe.measurement import Difference, compare_tensors
from opt_trt.errors import CheckFailed, UserError
from tests.unit._models import Model

DENSE = "transformer.layers.1.attention.dense.bias"


def checkpoint(directory: Path, name: str, model: Model | None = None, **flags: Any) -> Path:
    source = (model or Model()).write(directory / f"model-{name}")
    flags = {"log_level": "error", "dtype": "float32"} | flags
    convert(ConvertConfig(model_dir=str(source), output_dir=str(directory / name), **flags))
    return directory / name


def compare(a: Path, b: Path, **flags: Any) -> None:
    describe(DescribeConfig(directories=(str(a), str(b)), compare=True, **flags))


def change(directory: Path, name: str, by: float) -> None:
    """Add a number to the first element of a tensor."""
    tensors = load_file(directory / "rank0.safetensors")
    tensors[name].view(-1)[0] += by
    save_file(tensors, directory / "rank0.safetensors")


def test_equal_checkpoints_are_exit_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = checkpoint(tmp_path, "a"), checkpoint(tmp_path, "b")
    argv = ["--compare", str(a), str(b)]
    with pytest.raises(SystemExit) as stopped:
        run_main(describe, DescribeConfig, argv)
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"{a} and {b} are equal: the same configuration, the same values in 29 tensors" in out


def test_differences_are_printed_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = checkpoint(tmp_path, "a"), checkpoint(tmp_path, "b")
    change(b, DENSE, 0.25)
    with pytest.raises(SystemExit) as stopped:
        run_main(describe, DescribeConfig, ["--compare", str(a), str(b)])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert f"error: {a} and {b} differ in 1 of 29 tensors" in captured.err
    (line,) = (line for line in captured.out.splitlines() if line.startswith("transformer."))
    assert re.split(r"  +", line)[:4] == [DENSE, "float32", "float32", "0.25"]


def test_ranks_and_packing_do_not_hide_equal_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every rank of pp 2 has whole channels, so both quantize to the same values; the layouts of the GPUs differ."""
    model = Model(hidden=192, width=192, ffn=384, config={"num_attention_heads": 6})
    a = checkpoint(tmp_path, "a", model, use_weight_only=True, target_sm=80)
    b = checkpoint(tmp_path, "b", model, use_weight_only=True, target_sm=90, pp_size=2)
    compare(a, b)
    table = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines() if line]
    assert table[4:] == [
        ["mapping.world_size", "1", "2"], ["mapping.pp_size", "1", "2"], ["target_sm", "80", "90"],
        [f"{a} and {b} are equal: the same model in another layout, the same values in 29 tensors"],
    ]  # fmt: skip
    compare(a, b, json=True)
    assert json.loads(capsys.readouterr().out)["equal"]


def test_a_checkpoint_of_ranks_with_cut_tables_is_the_same_model(tmp_path: Path) -> None:
    a = checkpoint(tmp_path, "a")
    compare(a, checkpoint(tmp_path, "b", tp_size=2, use_parallel_embedding=True, embedding_sharding_dim=1))
    with pytest.raises(CheckFailed, match="differ in 1 config key, in none of 29 tensors"):
        compare(a, checkpoint(tmp_path, "c", Model(config={"bos_token_id": 3}), tp_size=2))


@pytest.mark.parametrize(("every", "names"), [
    (False, ["transformer.layers.0-1"]), (True, ["transformer.layers.0", "transformer.layers.1"]),
])  # fmt: skip
def test_quantization_is_measured_against_what_it_stands_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: bool, names: list[str]
) -> None:
    model = Model(hidden=192, width=192, ffn=384, config={"num_attention_heads": 6})
    a, b = checkpoint(tmp_path, "a", model), checkpoint(tmp_path, "b", model, use_weight_only=True)
    with pytest.raises(CheckFailed, match="differ in 1 config key and 8 of 29 tensors"):
        compare(a, b, all=every)
    lines = [line for line in capsys.readouterr().out.splitlines() if ".mlp.fc.weight" in line]
    rows = [re.split(r"  +", line) for line in lines]
    assert [row[:3] for row in rows] == [[f"{name}.mlp.fc.weight", "float32", "int8"] for name in names]
    step = max(model.tensors[f"model.decoder.layers.{n}.fc1.weight"].abs().max().item() for n in (0, 1)) / 128
    assert all(0.4 * step < float(row[3]) <= 1.001 * step for row in rows)  # half a step, a whole one at the maximum


def test_tensors_of_one_side_and_other_shapes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = checkpoint(tmp_path, "a", Model(ffn=40)), checkpoint(tmp_path, "b", Model(ffn=44, layers=3))
    with pytest.raises(CheckFailed):
        compare(a, b)
    rows = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert ["intermediate_size", "40", "44"] in rows
    assert ["transformer.layers.0-1.mlp.fc.bias", "float32 [40]", "float32 [44]"] in rows
    assert ["transformer.layers.2.mlp.fc.bias", "-", "float32 [44]"] in rows


def test_json_has_every_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = checkpoint(tmp_path, "a"), checkpoint(tmp_path, "b")
    compare(a, b, json=True)
    assert json.loads(capsys.readouterr().out) == {"a": str(a), "b": str(b), "equal": True, "config": {}, "tensors": []}
    change(b, "lm_head.weight", math.inf)
    with pytest.raises(CheckFailed):
        compare(a, b, json=True)
    values = json.loads(capsys.readouterr().out)
    assert not values["equal"]
    assert values["tensors"] == [{"name": "lm_head.weight", "a": "float32", "b": "float32", "largest_difference": None,
                                  "relative_difference": None, "rms_difference": None}]  # fmt: skip


def test_nested_keys_are_compared_by_path() -> None:
    a = {"same": 1, "mapping": {"tp_size": 1, "pp_size": 2}, "gone": None}
    b = {"same": 1, "mapping": {"tp_size": 4, "pp_size": 2}, "new": "x"}
    assert config_differences(a, b) == {"mapping.tp_size": (1, 4), "new": (None, "x")}


@pytest.mark.parametrize("block", [2, 1 << 20])
def test_distances_by_hand(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(listing, "BLOCK_ELEMENTS", block)
    a, b = torch.tensor([[3.0, 0.0, -1.0], [2.0, 0.0, 1.0]]), torch.tensor([[3.0, 0.0, -1.0], [1.0, 0.5, -1.0]])
    rms = math.sqrt((1 + 0.25 + 4) / (9 + 1 + 4 + 1))
    assert compare_tensors(a, b) == Difference(2.0, 2.0, pytest.approx(rms))
    assert compare_tensors(a, a.clone()) == Difference(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "largest"),
    [(math.nan, math.nan, 0.0), (math.inf, math.inf, 0.0), (math.nan, 1.0, math.nan), (1.0, -math.inf, math.inf)],
)
def test_what_is_not_finite_is_equal_to_itself_only(a: float, b: float, largest: float) -> None:
    found = compare_tensors(torch.tensor([1.0, a]), torch.tensor([1.0, b])).largest
    assert found == pytest.approx(largest, nan_ok=True)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    model = Model().write(tmp_path / "model")
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "config.json").write_text('{"build_config": {}, "pretrained_config": {}}')
    for directory, what in ((model, "an original model"), (engine, "an engine")):
        with pytest.raises(UserError, match=f"is {what}; give a checkpoint written by convert_checkpoint.py"):
            WholeModel(directory)
