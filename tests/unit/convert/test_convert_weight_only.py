"""Quantized checkpoints: stored bytes equal those of the scalar quantizer and packer; flags; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opt_trt.backends.inductor.builder.limits import resolve_limits
from opt_trt.checkpoint.packing import unpack
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.cli import parse
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.quant import ALGORITHMS, MODES
from tests.unit._models import Model
from tests.unit._scalar_weight_only import pack, quantize_channel

LAYER = "transformer.layers.0."


def small(**changes: Any) -> Model:
    """Return the smallest model that every mode and GPU can pack at tp_size 1 and 3."""
    shape = {"vocab": 50, "hidden": 192, "width": 192, "layers": 1, "ffn": 384, "config": {"num_attention_heads": 6}}
    return Model(**(shape | changes))


def run(model_dir: Path, output_dir: Path, **flags: Any) -> list[dict[str, torch.Tensor]]:
    flags = {"use_weight_only": True, "log_level": "error"} | flags
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(output_dir), **flags))
    return [load_file(output_dir / f"rank{r}.safetensors") for r in range(len(list(output_dir.glob("rank*"))))]


def config_of(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return values


def shards(model: Model, dtype: torch.dtype, tp_size: int, rank: int) -> dict[str, torch.Tensor]:
    """Return a rank's part of the first layer's linears, cut by hand from Hugging Face's tensors."""

    def part(name: str, axis: int) -> torch.Tensor:
        return model.tensors[f"model.decoder.layers.0.{name}.weight"].to(dtype).chunk(tp_size, axis)[rank]

    return {
        "attention.qkv": torch.cat([part(f"self_attn.{p}_proj", 0) for p in "qkv"]),
        "attention.dense": part("self_attn.out_proj", 1),
        "mlp.fc": part("fc1", 0),
        "mlp.proj": part("fc2", 1),
    }


@pytest.mark.parametrize(
    ("precision", "sm", "dtype", "tp_size", "pre_norm"),
    [
        ("int8", 75, "bfloat16", 1, True),
        ("int8", 90, "float16", 3, False),
        ("int8", 120, "float32", 3, True),
        ("int4", 75, "float32", 3, False),
        ("int4", 90, "bfloat16", 1, True),
        ("int4", 120, "float16", 3, True),
    ],
)
def test_stored_bytes_are_the_scalar_quantizers(
    tmp_path: Path, precision: str, sm: int, dtype: str, tp_size: int, pre_norm: bool
) -> None:
    model, bits = small(pre_norm=pre_norm), MODES[precision].bits
    model.tensors["model.decoder.layers.0.fc1.weight"][7] = 0
    ranks = run(model.write(tmp_path / "model"), tmp_path / "out", weight_only_precision=precision, target_sm=sm,
                dtype=dtype, tp_size=tp_size)  # fmt: skip
    for rank, tensors in enumerate(ranks):
        for part, weight in shards(model, getattr(torch, dtype), tp_size, rank).items():
            quantized = [quantize_channel(channel, bits) for channel in weight.tolist()]
            matrix = [list(row) for row in zip(*(integers for integers, _ in quantized), strict=True)]
            stored = tensors[f"{LAYER}{part}.weight"]
            assert (stored.dtype, stored.shape) == (torch.int8, (weight.shape[1], weight.shape[0] * bits // 8))
            assert stored.numpy().tobytes() == pack(matrix, bits, sm), (rank, part)
            scales = torch.tensor([scale for _, scale in quantized]).to(weight.dtype)
            assert torch.equal(tensors[f"{LAYER}{part}.per_channel_scale"], scales)


@pytest.mark.parametrize("tp_size", [1, 6])
@pytest.mark.parametrize("precision", MODES)
def test_every_stage_and_rank_is_quantized_from_its_own_part(tmp_path: Path, precision: str, tp_size: int) -> None:
    """Deferred weights that are quantized here equal those of the packed checkpoint, in several blocks of rows too."""
    model = small(hidden=384, width=384, layers=2, ffn=1536).write(tmp_path / "model")
    flags = {"weight_only_precision": precision, "tp_size": tp_size, "pp_size": 2}
    packed = run(model, tmp_path / "packed", target_sm=80, workers=2, **flags)
    deferred = run(model, tmp_path / "deferred", defer_quantization=True, **flags)
    mode = MODES[precision]
    for ours, plain in zip(packed, deferred, strict=True):
        assert plain.keys() == {name for name in ours if "per_channel_scale" not in name}
        for name, tensor in plain.items():
            if ours[name].dtype != torch.int8:
                assert torch.equal(ours[name], tensor)
                continue
            q, scale = mode.quantize(tensor)
            assert torch.equal(unpack(ours[name], mode.bits, 80), q)
            assert torch.equal(ours[name.removesuffix("weight") + "per_channel_scale"], scale)


def test_only_the_linears_of_layers_are_quantized(tmp_path: Path) -> None:
    (tensors,) = run(small().write(tmp_path / "model"), tmp_path / "out", target_sm=80)
    parts = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj")
    assert {n for n, t in tensors.items() if t.dtype == torch.int8} == {f"{LAYER}{part}.weight" for part in parts}
    assert tensors["lm_head.weight"].shape == (50, 192)


@pytest.mark.parametrize(("precision", "algorithm"), [("int8", "W8A16"), ("int4", "W4A16")])
def test_config_records_mode_and_gpu(tmp_path: Path, precision: str, algorithm: str) -> None:
    run(small().write(tmp_path / "model"), tmp_path / "out", weight_only_precision=precision, target_sm=89)
    config = config_of(tmp_path / "out")
    assert config["quantization"] == {"quant_algo": algorithm}
    assert (config["target_sm"], config["defer_quantization"]) == (89, False)


def test_int8_for_sm_80_is_the_default_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opt_trt.convert.convert.torch.cuda.is_available", lambda: False)
    run(small().write(tmp_path / "model"), tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["quantization"]["quant_algo"], config["target_sm"]) == ("W8A16", 80)


def test_the_visible_gpu_is_packed_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opt_trt.convert.convert.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("opt_trt.convert.convert.torch.cuda.get_device_capability", lambda: (8, 6))
    run(small().write(tmp_path / "model"), tmp_path / "out")
    assert config_of(tmp_path / "out")["target_sm"] == 86


def test_a_bare_precision_is_int8() -> None:
    config = parse(ConvertConfig, ["--model_dir", "m", "--use_weight_only", "--weight_only_precision"])
    assert config.weight_only_precision == "int8"


@pytest.mark.parametrize("sm", [None, 90, 100, 119])
def test_deferred_weights_are_plain_with_a_quant_algo(tmp_path: Path, sm: int | None) -> None:
    source = small(hidden=24, width=24, ffn=40).write(tmp_path / "model")  # deferred weights may have any shape
    (plain,) = run(source, tmp_path / "plain", use_weight_only=False)
    (deferred,) = run(source, tmp_path / "out", defer_quantization=True, target_sm=sm)
    config = config_of(tmp_path / "out")
    assert (config["quantization"], config["target_sm"]) == ({"quant_algo": "W8A16"}, sm)
    assert deferred.keys() == plain.keys()
    assert all(torch.equal(deferred[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("flags", "warned"),
    [({"target_sm": 90, "tp_size": 2}, True), ({"defer_quantization": True, "tp_size": 2}, True), ({}, False)],
)
def test_shapes_that_pack_and_tensorrt_llm_does_not_load_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, Any], warned: bool
) -> None:
    run(small().write(tmp_path / "model"), tmp_path / "out", **flags)
    text = "multiples of 64 features per rank, so its builder will not load this checkpoint: transformer.layers.0."
    assert (text + "attention.qkv.weight [288, 192], " in capsys.readouterr().err) == warned


@pytest.mark.parametrize("defer", [False, True])
@pytest.mark.parametrize("precision", MODES)
def test_the_reader_takes_what_was_written(tmp_path: Path, precision: str, defer: bool) -> None:
    flags = {"weight_only_precision": precision, "defer_quantization": defer, "tp_size": 3, "pp_size": 2}
    ranks = run(small(layers=2).write(tmp_path / "model"), tmp_path / "out", **flags)
    for rank, tensors in enumerate(ranks):
        checkpoint = Checkpoint(tmp_path / "out", rank)
        assert {name: torch.equal(tensor, tensors[name]) for name, tensor in checkpoint.tensors()} == dict.fromkeys(
            tensors, True
        )
    assert ALGORITHMS[str(checkpoint.config.quant_algo)].name == precision


@pytest.mark.parametrize(
    ("shape", "flags", "says"),
    [
        (
            {"hidden": 192, "width": 192, "ffn": 384},
            {"tp_size": 2, "target_sm": 80},
            r"^at tp_size 2 weights cannot be packed for SM 80: transformer\.layers\.0\.attention\.dense\.weight "
            r"\(of every layer\): 96 input features must be a multiple of 64; use a --tp_size of 1, 3, or "
            r"--defer_quantization$",
        ),
        (
            {"hidden": 192, "width": 192, "ffn": 360},
            {"target_sm": 90},
            r"mlp\.fc\.weight \(of every layer\): 360 output features must be a multiple of 32; "
            r"transformer\.layers\.0\.mlp\.proj\.weight \(of every layer\): 360 input features must be a multiple of "
            r"32; no --tp_size fits: use --defer_quantization$",
        ),
        (
            {"ffn": 384 * 5},
            {"tp_size": 6, "target_sm": 75, "weight_only_precision": "int4"},
            r"attention\.qkv\.weight \(of every layer\): 96 output features must be a multiple of 64; .*; use "
            r"a --tp_size of 1, 3, or --defer_quantization$",
        ),
        ({}, {"tp_size": 4}, r"^tp_size 4 does not divide 6 attention heads; use one of 1, 3$"),
        (
            {"ffn": 320},
            {"tp_size": 5},
            r"^tp_size 5 does not divide 6 attention heads; use 1$",
        ),
    ],
)
def test_a_part_that_cannot_be_packed_is_named(
    tmp_path: Path, shape: dict[str, int], flags: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        run(small(**shape).write(tmp_path / "model"), tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_not_finite_is_never_quantized(tmp_path: Path, value: str) -> None:
    model = small()
    model.tensors["model.decoder.layers.0.fc2.weight"][191, 383] = float(value)
    with pytest.raises(UserError, match=r"^model\.decoder\.layers\.0\.fc2\.weight in .* holds (NaN|infinite values)"):
        run(model.write(tmp_path / "model"), tmp_path / "out", tp_size=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sm", [100, 103, 119])
def test_gpus_whose_builder_takes_no_packed_weights_need_deferral(tmp_path: Path, sm: int) -> None:
    with pytest.raises(UserError, match=f"target_sm {sm}: .*refuses packed weights.*give --defer_quantization"):
        run(small().write(tmp_path / "model"), tmp_path / "out", target_sm=sm)


@pytest.mark.parametrize("defer", [False, True])
def test_an_unknown_gpu_is_named(tmp_path: Path, defer: bool) -> None:
    with pytest.raises(UserError, match=r"SM 70 has no known .*known are 75, 80"):
        run(small().write(tmp_path / "model"), tmp_path / "out", target_sm=70, defer_quantization=defer)


@pytest.mark.parametrize(
    "flags",
    [["--weight_only_precision", "int4"], ["--target_sm", "80"], ["--target_sm", "0"], ["--defer_quantization"]],
)
def test_how_to_quantize_without_quantizing_is_refused(flags: list[str]) -> None:
    with pytest.raises(UserError, match=f"{flags[0]} says how to quantize, but --use_weight_only is not given"):
        parse(ConvertConfig, ["--model_dir", "m", *flags])


def test_an_unknown_precision_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match=r"invalid choice: 'int2' .*int8.*int4"):
        parse(ConvertConfig, ["--model_dir", "m", "--use_weight_only", "--weight_only_precision", "int2"])


@pytest.mark.parametrize("flags", [{}, {"use_weight_only": True}, {"tp_size": 2}, {"pp_size": 2}])
def test_the_next_command_is_one_that_takes_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    run(small(layers=2).write(tmp_path / "model"), out, log_level="info", **({"use_weight_only": False} | flags))
    _, given = capsys.readouterr().out.strip().split("; next: python -m opt_trt build ")
    assert given == f"--checkpoint_dir {out} --output_dir {out}_engine"
    model = Checkpoint(out).config
    assert resolve_limits(model, parse(BuildConfig, given.split())).model == model
