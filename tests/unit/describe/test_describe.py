"""The contents of checkpoints, engines and original models are printed completely, from their files alone."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opt_trt.backends.engine import EngineConfig, Limits
from opt_trt.checkpoint.reader import read_config
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.convert.convert import convert
from opt_trt.describe import listing
from opt_trt.describe.describe import describe
from opt_trt.describe.listing import ListedTensor, blocks_of
from opt_trt.describe.measurement import measure_tensor
from opt_trt.describe.table import aligned, collapsed, number_text
from opt_trt.errors import CheckFailed, UserError
from opt_trt.host.disk import size_text
from opt_trt.quant import MODES
from tests.unit._metaseq import Metaseq
from tests.unit._models import Model
from tests.unit._whole_engine import write_engine

GOLDEN = Path(__file__).parents[2] / "golden"
LAYER = "transformer.layers.0."


def checkpoint(directory: Path, model: Model | None = None, **flags: Any) -> Path:
    source = (model or Model()).write(directory / "model")
    flags = {"log_level": "error", "dtype": "float32"} | flags
    convert(ConvertConfig(model_dir=str(source), output_dir=str(directory / "checkpoint"), **flags))
    return directory / "checkpoint"


def packable(layers: int = 2) -> Model:
    return Model(hidden=192, width=192, layers=layers, ffn=384, config={"num_attention_heads": 6})


def printed(capsys: pytest.CaptureFixture[str], directory: Path, **flags: Any) -> str:
    capsys.readouterr()
    describe(DescribeConfig(directories=(str(directory),), **flags))
    return capsys.readouterr().out


def cells(text: str, name: str) -> list[str]:
    """Return the columns of a tensor's line."""
    (line,) = (line for line in text.splitlines() if line.startswith(name + " "))
    return re.split(r"  +", line)


def test_a_checkpoint_is_a_header_and_a_table_per_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model(
        vocab=47, layers=3, config={"tie_word_embeddings": False}, tensors={"lm_head.weight": torch.ones(47, 16)}
    )
    text = printed(capsys, checkpoint(tmp_path, model, tp_size=2, pp_size=2, use_parallel_embedding=True))
    assert text.splitlines()[:11] == [
        f"checkpoint {tmp_path}/checkpoint", "",
        "architecture  OPTForCausalLM, pre-norm",
        "dtype         float32",
        "quantization  none",
        "ranks         4 (tp 2 x pp 2)",
        "layers        3, 4 heads of 4",
        "sizes         hidden 16, ffn 40, vocabulary 47, 12 positions",
        "embedding     sharded by vocabulary",
        "token ids     bos 2, eos 2, pad 1",
        "listed        82 tensors, 38.2 KB (38,176 bytes)",
    ]  # fmt: skip
    titles = [line for line in text.splitlines() if line.startswith("rank ")]
    assert titles == [
        "rank 0 (tp 0, pp 0), layers 0-1 of the model: 12.3 KB",
        "rank 1 (tp 1, pp 0), layers 0-1 of the model: 12.3 KB",
        "rank 2 (tp 0, pp 1), layer 2 of the model: 6.8 KB",
        "rank 3 (tp 1, pp 1), layer 2 of the model: 6.8 KB",
    ]
    heads = [line for line in text.splitlines() if line.startswith("lm_head.weight")]
    assert [re.split(r"  +", line) for line in heads] == [
        ["lm_head.weight", "float32", "[24, 16]", "1,536", "1", "1"],
        ["lm_head.weight", "float32", "[24, 16]", "1,536", "0", "1"],  # one row of padding
    ]


def test_layers_share_a_line_with_the_extremes_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, names = Model(layers=3), [f"model.decoder.layers.{layer}.fc1.bias" for layer in range(3)]
    for value, name in enumerate(names):
        model.tensors[name] = torch.full((40,), value - 0.5)
    text = printed(capsys, checkpoint(tmp_path, model))
    assert cells(text, "transformer.layers.0-2.mlp.fc.bias")[1:] == ["float32", "[40]", "480", "-0.500000", "1.500000"]
    assert "a line for several layers shows the sum of their bytes" in text


def test_every_layer_has_its_own_lines_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, checkpoint(tmp_path), all=True)
    assert cells(text, "transformer.layers.1.mlp.fc.bias")[1:4] == ["float32", "[40]", "160"]
    assert sum(line.startswith(("transformer.", "lm_head.")) for line in text.splitlines()) == 29
    assert "a line of several layers" not in text


def test_one_rank_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = checkpoint(tmp_path, tp_size=2)
    text = printed(capsys, directory, rank=1)
    assert "rank 1 (tp 1, pp 0)" in text and "rank 0" not in text and "listed        29 tensors" in text
    for rank in (2, -1):
        with pytest.raises(UserError, match=f"--rank {rank}: {directory} has the ranks 0 to 1"):
            printed(capsys, directory, rank=rank)


@pytest.mark.parametrize(
    ("precision", "sm", "columns"),
    [
        ("int8", 80, ["int8", "[192, 384]"]),
        ("int4", 90, ["int4x2", "[192, 192]"]),
        ("int4", 120, ["int4x2", "[192, 192]"]),
    ],
)
def test_packed_weights_show_their_integers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str, sm: int, columns: list[str]
) -> None:
    model, bits = packable(layers=1), MODES[precision].bits
    weight = model.tensors["model.decoder.layers.0.fc1.weight"]
    weight.clamp_(-0.2, 0.1)[:, 0] = -0.2  # so that every channel reaches half its positive range
    directory = checkpoint(tmp_path, model, use_weight_only=True, weight_only_precision=precision, target_sm=sm)
    text = printed(capsys, directory)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 2)
    assert cells(text, f"{LAYER}mlp.fc.weight")[1:] == [*columns, f"{192 * 384 * bits // 8:,}", str(low), str(high)]
    assert f"packed for SM {sm}" in text and f"packed weights ({columns[0]}) show their integers" in text


def test_a_checkpoint_that_names_no_gpu_can_be_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TensorRT-LLM's own converter leaves the GPU out; the set of integers does not depend on the layout."""
    directory = checkpoint(tmp_path, packable(), use_weight_only=True)
    expected = printed(capsys, directory)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"target_sm": None}))
    assert printed(capsys, directory) == expected.replace("packed for SM 80", "packed for a GPU it does not name")


def test_deferred_quantization_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, checkpoint(tmp_path, packable(), use_weight_only=True, defer_quantization=True))
    assert "quantization  W8A16 (int8 weights), deferred to the build" in text and "packed weights" not in text


@pytest.mark.parametrize("model", ["opt-tiny", "opt-tiny-postnorm"])
def test_hashes_are_those_of_the_golden_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    folded = {"transformer.vocab_embedding.weight", "lm_head.weight"} if model == "opt-tiny-postnorm" else set()
    cases = json.loads((GOLDEN / f"{model}.json").read_text())["cases"]
    for case in (case for case in cases if case["tp_size"] == 2):
        quantized = case["weight_only_precision"] is not None
        keys = ("dtype", "tp_size", "weight_only_precision", "use_parallel_embedding", "embedding_sharding_dim")
        flags = {key: case[key] for key in keys} | {"use_weight_only": quantized, "target_sm": case["sm"]}
        convert(ConvertConfig(str(GOLDEN / model), output_dir=str(tmp_path / "out"), log_level="error", **flags))
        parts = json.loads(printed(capsys, tmp_path / "out", sha256=True, json=True))["parts"]
        for part, golden in zip(parts, case["ranks"], strict=True):
            found = {tensor["name"]: tensor["sha256"] for tensor in part["tensors"]}
            assert found.keys() == golden.keys()
            assert all(found[name] == golden[name]["sha256"] for name in found.keys() - folded)


def test_a_hash_stands_at_the_end_of_each_tensors_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, checkpoint(tmp_path), sha256=True)
    lines = [line for line in text.splitlines() if line.startswith("transformer.layers.1.")]
    assert len(lines) == 12 and all(re.search(r"  [0-9a-f]{64}$", line) for line in lines)


def test_json_has_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = checkpoint(tmp_path, tp_size=2)
    values = json.loads(printed(capsys, directory, json=True))
    assert (values["kind"], values["directory"]) == ("checkpoint", str(directory))
    assert values["config"] == json.loads((directory / "config.json").read_text())
    assert [part["rank"] for part in values["parts"]] == [0, 1]
    for rank, part in enumerate(values["parts"]):
        tensors = load_file(directory / f"rank{rank}.safetensors")
        assert {t["name"]: (t["shape"], t["bytes"], t["min"], t["max"]) for t in part["tensors"]} == {
            name: (list(t.shape), t.nbytes, t.min().item(), t.max().item()) for name, t in tensors.items()
        }
    assert values["bytes"] == sum(part["bytes"] for part in values["parts"])


def test_what_is_not_finite_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = checkpoint(tmp_path)
    tensors = load_file(directory / "rank0.safetensors")
    tensors["lm_head.weight"][3, 3] = math.nan
    tensors[f"{LAYER}mlp.fc.bias"][0] = math.inf
    save_file(tensors, directory / "rank0.safetensors")
    text = printed(capsys, directory)
    assert cells(text, "lm_head.weight")[-2:] == ["nan", "nan"]
    assert cells(text, "transformer.layers.0-1.mlp.fc.bias")[-1] == "inf"
    values = {t["name"]: t for t in json.loads(printed(capsys, directory, json=True))["parts"][0]["tensors"]}
    assert values["lm_head.weight"]["min"] is None and values[f"{LAYER}mlp.fc.bias"]["max"] is None


def test_blocks_do_not_change_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    entry = ListedTensor("x", "float32", (100, 6), tensor.nbytes, lambda: blocks_of(tensor))
    whole = measure_tensor(entry, True)
    monkeypatch.setattr(listing, "BLOCK_ELEMENTS", 7)
    assert measure_tensor(entry, True) == whole and (whole.low, whole.high) == (
        tensor.min().item(),
        tensor.max().item(),
    )


def test_a_hugging_face_model_is_listed_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Model(width=8, pre_norm=False).write(tmp_path / "model", shards=2)
    text = printed(capsys, source)
    assert "OPTForCausalLM, post-norm" in text and "embeddings 8 wide with projections" in text
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("model-")] == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    assert cells(text, "model.decoder.project_in.weight")[1:4] == ["float32", "[16, 8]", "512"]
    with pytest.raises(UserError, match="has no ranks; drop --rank"):
        printed(capsys, source, rank=0)


def test_an_engine_is_listed_with_what_it_was_built_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = read_config(checkpoint(tmp_path))
    engine = EngineConfig(
        pretrained_config=model,
        build_config=Limits(8, 924, 1024, 8192, 32, False, False),
        backend="inductor",
        device={"type": "cpu", "isa": "avx512", "torch": "2.13.0"},
        plugin_library="x.so",
        tactics={"qkv": ["fp32_8", "fp32_8", "library"], "attention": ["flash"]},
        checkpoint="0123456789abcdef",
        version="0.1.0",
    )
    directory = tmp_path / "engine"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(engine.to_dict()))
    save_file({"transformer.layers.0.a": torch.ones(2, 3), "transformer.layers.1.a": torch.zeros(2, 3)},
              directory / "rank0.weights.safetensors")  # fmt: skip
    text = printed(capsys, directory)
    for line in (
        f"engine {directory}",
        "built         opt_trt 0.1.0, backend inductor for cpu avx512, torch 2.13.0",
        "limits        batch 8, input 924, sequence 1024, 8192 packed tokens, KV cache blocks of 32",
        "tactics       qkv: fp32_8, library; attention: flash",
        f"on disk       {size_text(sum(file.stat().st_size for file in directory.iterdir()))} in 2 files",
        "listed        2 tensors, 48 bytes",
    ):
        assert line in text.splitlines()
    assert cells(text, "transformer.layers.0-1.a")[1:] == ["float32", "[2, 3]", "48", "0", "1"]


def test_changed_contents_of_an_engine_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_engine(tmp_path)
    assert "contents      as built" in printed(capsys, tmp_path).splitlines()
    path = tmp_path / "rank0.weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"@")  # the last byte of a tensor, which no sample need contain
    with pytest.raises(CheckFailed, match=r"not as built: rank0\.weights\.safetensors; copy it again"):
        printed(capsys, tmp_path)
    assert printed_after_failure(capsys) == "contents      not as built: rank0.weights.safetensors"


def printed_after_failure(capsys: pytest.CaptureFixture[str]) -> str:
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("contents"))


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no original model of a known format"), ("{}", "does not describe a checkpoint, engine or")],
)
def test_another_directory_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=says):
        printed(capsys, tmp_path)


@pytest.mark.parametrize(("level", "shown"), [("info", True), ("warning", False)])
def test_log_level_decides_on_the_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, level: str, shown: bool
) -> None:
    directory = checkpoint(tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    capsys.readouterr()
    describe(DescribeConfig(directories=(str(directory),), log_level=level))
    assert ("describe:" in capsys.readouterr().err) == shown


def test_columns_are_aligned() -> None:
    assert aligned(("name", "n"), [("a", "1,000"), ("long name", "7")], left=1) == [
        "name           n",
        "----------------",
        "a          1,000",
        "long name      7",
    ]


def test_only_layers_that_are_alike_share_a_line() -> None:
    items = ["x.layers.0.a", "x.layers.0.b", "x.layers.1.a", "x.layers.3.a", "y"]
    lines = collapsed(items, lambda item: item, lambda item: None)
    assert list(lines) == ["x.layers.0-1,3.a", "x.layers.0.b", "y"]
    apart = collapsed(items, lambda item: item, lambda item: item == "x.layers.1.a")
    assert list(apart) == ["x.layers.0,3.a", "x.layers.0.b", "x.layers.1.a", "y"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(-8, "-8"), (0, "0"), (0.25, "0.250000"), (-1.5e-5, "-1.500e-05"), (2.5e7, "25000000"), (1.5e6 + 0.5, "1.500e+06"),
     (math.nan, "nan"), (-math.inf, "-inf")],
)  # fmt: skip
def test_numbers_stand_under_one_another(value: float, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 bytes"), (1000, "1.0 KB"), (7_123_456, "7.1 MB"), (10**11, "100.0 GB")]
)
def test_sizes_have_a_unit(size: int, text: str) -> None:
    assert size_text(size) == text


def test_a_metaseq_model_is_listed_by_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = Metaseq(Model(), parts=2).write(tmp_path / "model")
    text = printed(capsys, directory)
    assert text.startswith("original model") and "decoder.layers.0-1." in text
