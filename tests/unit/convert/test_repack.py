"""Repacking for another GPU gives the bytes of a conversion for that GPU, there and back; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.repack_flags import RepackConfig
from opt_trt.convert.convert import convert
from opt_trt.convert.repack import repack
from opt_trt.errors import UserError
from tests.unit._models import Model

GPUS = (75, 90, 120)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the smallest model that both modes and all GPUs can pack at tp_size 2."""
    model = Model(vocab=50, hidden=128, width=128, layers=2, ffn=256, config={"num_attention_heads": 4})
    return model.write(tmp_path_factory.mktemp("model"))


def converted(model_dir: Path, out: Path, **flags: Any) -> Path:
    flags = {"use_weight_only": True, "target_sm": 80, "log_level": "error"} | flags
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(out), **flags))
    return out


def repacked(checkpoint: Path, out: Path | None, sm: int, log_level: str = "error") -> Path:
    output = None if out is None else str(out)
    repack(RepackConfig(checkpoint_dir=str(checkpoint), target_sm=sm, output_dir=output, log_level=log_level))
    return out or checkpoint


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("ranks", [{}, {"tp_size": 2}, {"pp_size": 2}])
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(("source", "target"), [(a, b) for a in GPUS for b in GPUS if a != b])
def test_bytes_are_those_of_a_conversion_for_the_other_gpu(
    tmp_path: Path, model_dir: Path, precision: str, source: int, target: int, ranks: dict[str, int]
) -> None:
    flags: dict[str, Any] = {"weight_only_precision": precision, **ranks}
    first = converted(model_dir, tmp_path / "first", target_sm=source, **flags)
    wanted = converted(model_dir, tmp_path / "wanted", target_sm=target, **flags)
    other = repacked(first, tmp_path / "other", target)
    assert contents(other) == contents(wanted)
    assert contents(repacked(other, tmp_path / "back", source)) == contents(first)
    assert (contents(first)["rank0.safetensors"] != contents(other)["rank0.safetensors"]) == (90 in (source, target))


def test_without_an_output_directory_the_checkpoint_is_replaced(tmp_path: Path, model_dir: Path) -> None:
    checkpoint = converted(model_dir, tmp_path / "checkpoint")
    repacked(checkpoint, None, 90)
    assert contents(checkpoint) == contents(converted(model_dir, tmp_path / "wanted", target_sm=90))


def test_keys_of_other_programs_stay(tmp_path: Path, model_dir: Path) -> None:
    checkpoint = converted(model_dir, tmp_path / "checkpoint")
    values = json.loads((checkpoint / "config.json").read_text()) | {"producer": {"name": "other"}}
    (checkpoint / "config.json").write_text(json.dumps(values))
    out = repacked(checkpoint, tmp_path / "out", 90)
    assert json.loads((out / "config.json").read_text()) == values | {"target_sm": 90}


def test_a_failure_leaves_what_was_there(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = converted(model_dir, tmp_path / "checkpoint")
    before = contents(checkpoint)

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("opt_trt.convert.repack.repack_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repacked(checkpoint, None, 90)
    assert contents(checkpoint) == before and [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_one_line_says_what_was_done(tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = converted(model_dir, tmp_path / "checkpoint", tp_size=2)
    repacked(checkpoint, tmp_path / "quiet", 90)
    assert capsys.readouterr().out == ""
    repacked(checkpoint, tmp_path / "out", 90, "info")
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"checkpoint {tmp_path / 'out'}: packed for SM 90 (was 80), 321.0 KB in 2 ranks, ")


@pytest.mark.parametrize(
    ("flags", "sm", "says"),
    [
        ({"use_weight_only": False, "target_sm": None}, 90, "no quantized weights: it fits every GPU as it is"),
        ({"defer_quantization": True}, 90, "float16 weights, to be quantized by the builder: it fits every GPU as"),
        ({}, 70, "SM 70 has no known weight-only layout"),
        ({}, 100, "target_sm 100: TensorRT-LLM's builder refuses packed weights on SM 100 to 119; convert the model"),
    ],
)
def test_what_cannot_be_repacked_is_named(
    tmp_path: Path, model_dir: Path, flags: dict[str, Any], sm: int, says: str
) -> None:
    checkpoint = converted(model_dir, tmp_path / "checkpoint", **flags)
    with pytest.raises(UserError, match=says):
        repacked(checkpoint, tmp_path / "out", sm)
    assert not (tmp_path / "out").exists()


def test_a_shard_the_other_gpu_cannot_read_is_named(tmp_path: Path) -> None:
    """SM 90 can have 96 int8 input features; interleaving needs multiples of 64."""
    model = Model(vocab=50, hidden=96, width=96, layers=1, ffn=192, config={"num_attention_heads": 3})
    checkpoint = converted(model.write(tmp_path / "model"), tmp_path / "checkpoint", target_sm=90)
    with pytest.raises(UserError, match=r"cannot be packed for SM 80: .*96 input features must be a multiple of 64"):
        repacked(checkpoint, tmp_path / "out", 80)
