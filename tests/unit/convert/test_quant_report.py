"""The quantization report gives the errors of the stored weights, and its picture shows all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file

from opt_trt.checkpoint.packing import unpack
from opt_trt.cli import parse
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert, model_name
from opt_trt.convert.heatmap import COLOURS, Cell, Heatmap, HeatmapRow, colour, draw_heatmap
from opt_trt.convert.quant_report import QuantError, QuantReport, Shard
from opt_trt.errors import UserError
from opt_trt.quant import MODES
from tests.unit._models import Model

MATRICES = ["attention.qkv", "attention.dense", "mlp.fc", "mlp.proj"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model of three layers that every mode can pack at tp_size 1 and 3."""
    model = Model(vocab=50, hidden=192, width=192, layers=3, ffn=384, config={"num_attention_heads": 6})
    model.tensors["model.decoder.layers.1.fc1.weight"][7] = 0
    model.tensors["model.decoder.layers.2.fc2.weight"][:] = 0
    return model.write(tmp_path / "model<1>")


def run(model: Path, output_dir: Path, **flags: Any) -> None:
    flags = {"use_weight_only": True, "target_sm": 80, "log_level": "error"} | flags
    convert(ConvertConfig(model_dir=str(model), output_dir=str(output_dir), **flags))


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def test_error_and_cosine_are_summed_up_over_blocks() -> None:
    report, shard = QuantReport(MODES["int8"]), Shard("mlp.fc", 0, 5, 0)
    report.add(shard, torch.tensor([[3.0, 0.0]]), torch.tensor([[3, 0]], dtype=torch.int8), torch.tensor([1.0]))
    report.add(shard, torch.tensor([[0.0, 4.0]]), torch.tensor([[0, 0]], dtype=torch.int8), torch.tensor([2.0]))
    assert report.errors() == {shard: QuantError(relative_error=0.8, cosine=0.6)}  # 4 / 5 and 9 / (5 * 3)


@pytest.mark.parametrize(("value", "error"), [(0.0, QuantError(0.0, 1.0)), (1.0, QuantError(1.0, 0.0))])
def test_a_weight_of_zeros_has_an_error_too(value: float, error: QuantError) -> None:
    report, shard = QuantReport(MODES["int8"]), Shard("mlp.fc", 0, 0, 0)
    report.add(shard, torch.tensor([[value]]), torch.tensor([[0]], dtype=torch.int8), torch.tensor([0.0]))
    assert report.errors() == {shard: error}


@pytest.mark.parametrize(("precision", "dtype"), [("int8", "float16"), ("int4", "bfloat16")])
def test_numbers_are_those_of_the_stored_weights(tmp_path: Path, model: Path, precision: str, dtype: str) -> None:
    ranks = {"tp_size": 3, "pp_size": 2, "dtype": dtype}
    run(model, tmp_path / "plain", use_weight_only=False, target_sm=None, **ranks)
    run(model, tmp_path / "out", weight_only_precision=precision, workers=2, report=str(tmp_path / "r"), **ranks)
    report = read(tmp_path / "r" / "report.json")
    bits, expected = MODES[precision].bits, []
    for layer in range(3):
        stage, local = divmod(layer, 2)
        for rank in range(3 * stage, 3 * stage + 3):
            plain, packed = (load_file(tmp_path / d / f"rank{rank}.safetensors") for d in ("plain", "out"))
            for matrix in MATRICES:
                name = f"transformer.layers.{local}.{matrix}."
                w = plain[name + "weight"].double()
                q = unpack(packed[name + "weight"], bits, 80) * packed[name + "per_channel_scale"].double()[:, None]
                error = float((w - q).norm() / w.norm()) if w.any() else 0.0
                cosine = float((w * q).sum() / w.norm() / q.norm()) if w.any() else 1.0
                expected.append((layer, matrix, rank, rank % 3, error, cosine))
    keys = ("layer", "matrix", "rank", "tp_rank", "relative_error", "cosine")
    found = sorted(tuple(row[key] for key in keys) for row in report["tensors"])
    for ours, theirs in zip(found, sorted(expected), strict=True):
        assert ours[:4] == theirs[:4]
        assert ours[4:] == pytest.approx(theirs[4:], rel=1e-6)  # dequantized in fp32 here, in fp64 there
    assert report["worst"]["relative_error"] == max(row[4] for row in found)
    assert report["mean_relative_error"] == pytest.approx(sum(row[4] for row in found) / 36, rel=1e-12)
    assert (report["quant_algo"], report["tp_size"], report["pp_size"], report["dtype"]) == (
        MODES[precision].quant_algo, 3, 2, dtype,
    )  # fmt: skip


def test_a_deferred_report_is_of_what_the_builder_will_make_and_weights_stay_plain(tmp_path: Path, model: Path) -> None:
    run(model, tmp_path / "packed", tp_size=3, report=str(tmp_path / "packed.json"))
    run(model, tmp_path / "deferred", tp_size=3, defer_quantization=True, report=str(tmp_path / "deferred.json"))
    assert read(tmp_path / "packed.json")["tensors"] == read(tmp_path / "deferred.json")["tensors"]
    tensors = load_file(tmp_path / "deferred" / "rank0.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_a_report_does_not_change_the_checkpoint(tmp_path: Path, model: Path) -> None:
    run(model, tmp_path / "a")
    run(model, tmp_path / "b", report=str(tmp_path / "r"))
    for name in ("config.json", "rank0.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("path", "files"), [("r", ["r/report.json", "r/report.svg"]), ("deep/x.json", ["deep/x.json", "deep/x.svg"])]
)
def test_both_files_are_where_they_were_asked_for_and_named(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], path: str, files: list[str]
) -> None:
    run(model, tmp_path / "out", report=str(tmp_path / path), log_level="info")
    assert sorted(p.name for p in (tmp_path / files[0]).parent.iterdir()) == [Path(file).name for file in files]
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"report {tmp_path / files[0]}, {tmp_path / files[1]}: relative error ")
    assert "% on average" in line and "% at worst (layer " in line


def test_a_report_without_quantization_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--report tells of quantized weights, but --use_weight_only is not given"):
        parse(ConvertConfig, ["--model_dir", "m", "--report", "r"])


@pytest.mark.parametrize("path", ["out", "out/r.json", "out/deep"])
def test_a_report_inside_the_checkpoint_is_refused(tmp_path: Path, model: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"^--report .* is inside --output_dir .*, which may hold the checkpoint alone"):
        run(model, tmp_path / "out", report=str(tmp_path / path))
    assert not (tmp_path / "out").exists()


def test_an_empty_name_of_a_report_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UserError, match=r"^--report must be a directory or .* found an empty text"):
        run(model, tmp_path / "out", report="")
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=rf"^--report .*/file/r cannot be written: {tmp_path / 'file'} is no directory"):
        run(model, tmp_path / "out", report=str(tmp_path / "file" / "r"))
    assert not (tmp_path / "out").exists()


def test_a_failed_conversion_leaves_no_report(tmp_path: Path) -> None:
    damaged = Model(hidden=64, width=64, ffn=64)
    damaged.tensors["model.decoder.layers.1.fc2.bias"][3] = float("inf")
    with pytest.raises(UserError, match="infinite"):
        run(damaged.write(tmp_path / "model"), tmp_path / "out", report=str(tmp_path / "r"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def picture(layers: int) -> str:
    rows = [
        HeatmapRow(
            name,
            name,
            [Cell(value + layer, f"{value + layer:.1f}", f"<hint {layer}>") for layer in range(layers)],
            ["m"],
        )
        for name, value in (("a&b", 10.0), ("c", 20.0))
    ]
    return draw_heatmap(Heatmap("title <1>", "subtitle", "unit", "layer", ["remark"], rows))


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(("layers", "shows_values"), [(1, True), (12, True), (24, True), (48, False), (96, False)])
def test_few_cells_show_their_values_and_many_their_colours_alone(layers: int, shows_values: bool) -> None:
    svg = picture(layers)
    assert ("20.0" in texts(svg)) == shows_values
    assert svg.count("&lt;hint ") == 2 * layers
    assert {"title <1>", "subtitle", "unit", "layer", "remark", "a&b", "c", "m"} <= set(texts(svg))
    width = int(ElementTree.fromstring(svg).attrib["width"])
    assert width < 1500


def test_the_numbers_under_96_columns_do_not_touch() -> None:
    numbers = [text for text in texts(picture(96)) if text.isdigit()]
    assert numbers == [str(layer) for layer in range(0, 96, 4)]


def test_a_picture_refers_to_nothing_outside_itself() -> None:
    svg = picture(2)
    assert "href" not in svg and "@import" not in svg and svg.count("http") == 1  # the name of the format
    assert "url(#colours)" in svg and 'id="colours"' in svg


def test_colours_run_from_the_first_to_the_last_and_are_mixed_between() -> None:
    assert [colour(share) for share in (-1.0, 0.0, 1.0, 2.0)] == [COLOURS[0], COLOURS[0], COLOURS[-1], COLOURS[-1]]
    assert colour(0.5) == COLOURS[4]
    assert colour(1 / 16) == "#461768"  # halfway from #440154 to #472d7b


@pytest.mark.parametrize(
    ("values", "shares"), [((1.0, 1.0), (1.0, 1.0)), ((0.0, 0.0), (0.0, 0.0)), ((3.0, 4.0), (0.75, 1.0))]
)
def test_colours_begin_at_0_so_that_noise_does_not_look_like_an_outlier(
    values: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    svg = draw_heatmap(Heatmap("t", "s", "u", "c", [], [HeatmapRow("a", "a", [Cell(v, "1", "x") for v in values], [])]))
    assert re.findall(r'<g><title>x</title><rect [^>]*fill="([^"]+)"', svg) == [colour(share) for share in shares]


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("/models/opt-125m", "opt-125m"),
        ("/examples/demo/model", "demo"),
        ("/hub/models--facebook--opt-125m/snapshots/3c2f0d", "facebook/opt-125m"),
        ("/model", "model"),
    ],
)
def test_a_model_has_the_name_that_people_give_it(directory: str, name: str) -> None:
    assert model_name(Path(directory)) == name
