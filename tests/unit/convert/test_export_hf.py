"""A checkpoint with any ranks, sharding and packing becomes the Hugging Face model again from which it was made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTForCausalLM

from opt_trt.checkpoint.reader import read_config, write_config
from opt_trt.checkpoint.writer import TensorSpec
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.export_flags import ExportConfig
from opt_trt.convert import export_hf as export
from opt_trt.convert.convert import convert
from opt_trt.convert.export_hf import export_hf, shard_files
from opt_trt.errors import UserError
from opt_trt.quant import MODES
from tests.unit._models import Model

Tensors = dict[str, torch.Tensor]
POSITIONS = "model.decoder.embed_positions.weight"
CUT_BY_INPUT = ("out_proj.weight", "fc2.weight")


def there_and_back(model: Model, tmp_path: Path, max_shard_size: str = "5GB", **flags: Any) -> Path:
    source, checkpoint, output = model.write(tmp_path / "model"), tmp_path / "checkpoint", tmp_path / "hf"
    flags = {"dtype": "float32", "log_level": "error"} | flags
    convert(ConvertConfig(model_dir=str(source), output_dir=str(checkpoint), **flags))
    run(checkpoint, output, max_shard_size=max_shard_size)
    return output


def run(checkpoint: Path, output: Path, **flags: Any) -> None:
    flags = {"log_level": "error"} | flags
    export_hf(ExportConfig(checkpoint_dir=str(checkpoint), output_dir=str(output), **flags))


def stored(directory: Path) -> Tensors:
    return {name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()}


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def without_offset_rows(tensors: Tensors) -> Tensors:
    """A checkpoint does not hold the two rows of the position table that are never looked up."""
    positions = tensors[POSITIONS].clone()
    positions[:2] = 0
    return tensors | {POSITIONS: positions}


@pytest.mark.parametrize("embedding", [(False, 0), (True, 0), (True, 1)])
@pytest.mark.parametrize("pp_size", [1, 2])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_a_plain_model_comes_back_tensor_for_tensor(
    tmp_path: Path, tp_size: int, pp_size: int, embedding: tuple[bool, int]
) -> None:
    model = Model(vocab=47, layers=3)  # 47 rows are padded to 48
    output = there_and_back(model, tmp_path, tp_size=tp_size, pp_size=pp_size,
                            use_parallel_embedding=embedding[0], embedding_sharding_dim=embedding[1])  # fmt: skip
    assert same(stored(output), without_offset_rows(model.tensors))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensors_keep_the_checkpoints_dtype(tmp_path: Path, dtype: str) -> None:
    model = Model()
    output = there_and_back(model, tmp_path, dtype=dtype)
    rounded = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.tensors.items()}
    assert same(stored(output), without_offset_rows(rounded))
    assert json.loads((output / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("changes", [
    {"pre_norm": False},
    {"config": {"_remove_final_layer_norm": True}},
    {"config": {"tie_word_embeddings": False}, "tensors": {"lm_head.weight": torch.ones(48, 16)}},
])  # fmt: skip
def test_kinds_of_decoder_come_back_as_such(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = Model(**changes)
    output = there_and_back(model, tmp_path, tp_size=2)
    assert same(stored(output), without_offset_rows(model.tensors))
    config = json.loads((output / "config.json").read_text())
    assert model.config.items() <= config.items()


def packable(**changes: Any) -> Model:
    """Return the smallest model that every mode and GPU can pack at tp_size 1 and 3."""
    return Model(vocab=50, hidden=192, width=192, layers=2, ffn=384, config={"num_attention_heads": 6}, **changes)


def dequantized(model: Model, precision: str, tp_size: int, dtype: torch.dtype) -> Tensors:
    """Return the dequantized parts of all ranks, in Hugging Face's own shapes."""
    mode, tensors = MODES[precision], {name: tensor.to(dtype) for name, tensor in model.tensors.items()}
    for name, tensor in tensors.items():
        if ".layers." in name and tensor.dim() == 2:
            axis = 1 if name.endswith(CUT_BY_INPUT) else 0
            parts = [mode.dequantize(*mode.quantize(part)).to(dtype) for part in tensor.chunk(tp_size, axis)]
            tensors[name] = torch.cat(parts, axis)
    return without_offset_rows(tensors)


@pytest.mark.parametrize(("tp_size", "pp_size"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("sm", [80, 90, 120])
@pytest.mark.parametrize("precision", MODES)
def test_packed_weights_come_back_as_what_they_stand_for(
    tmp_path: Path, precision: str, sm: int, tp_size: int, pp_size: int
) -> None:
    model = packable()
    output = there_and_back(model, tmp_path, dtype="float16", tp_size=tp_size, pp_size=pp_size, target_sm=sm,
                            use_weight_only=True, weight_only_precision=precision)  # fmt: skip
    assert same(stored(output), dequantized(model, precision, tp_size, torch.float16))


def test_deferred_weights_come_back_as_they_are(tmp_path: Path) -> None:
    model = packable()
    output = there_and_back(model, tmp_path, tp_size=3, use_weight_only=True, defer_quantization=True)
    assert same(stored(output), without_offset_rows(model.tensors))


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (Model(), {"tp_size": 2}),
        (Model(width=8, pre_norm=False), {"pp_size": 2}),
        (packable(), {"use_weight_only": True, "target_sm": 90}),
    ],
)
def test_transformers_finds_every_tensor_and_warns_of_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], model: Model, flags: dict[str, Any]
) -> None:
    output = there_and_back(model, tmp_path, **flags)
    capfd.readouterr()
    loaded, info = OPTForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    assert "arn" not in (err := capfd.readouterr().err) and "newly initialized" not in err
    tokens = loaded.generation_config
    assert (tokens.bos_token_id, tokens.eos_token_id, tokens.pad_token_id) == (2, 2, 1)


def test_a_model_with_projections_computes_the_same_without_them(tmp_path: Path) -> None:
    """The products are rounded once, at conversion, so only the order of fp32 sums differs."""
    model = Model(width=8, pre_norm=False)
    output = there_and_back(model, tmp_path, tp_size=2)
    ids = torch.arange(40).view(4, 10)
    original = OPTForCausalLM.from_pretrained(tmp_path / "model")
    exported = OPTForCausalLM.from_pretrained(output)
    with torch.no_grad():
        difference = (original(ids).logits - exported(ids).logits).abs().max()
    assert difference < 1e-4
    assert (exported.config.word_embed_proj_dim, exported.config.tie_word_embeddings) == (16, False)


def test_an_export_converts_to_the_same_checkpoint(tmp_path: Path) -> None:
    output = there_and_back(Model(width=8, pre_norm=False), tmp_path)
    convert(ConvertConfig(model_dir=str(output), output_dir=str(tmp_path / "again"), dtype="float32"))
    for name in ("config.json", "rank0.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "checkpoint" / name).read_bytes()


def test_files_take_tensors_in_order_until_they_are_full() -> None:
    specs = {name: TensorSpec((length,), torch.int8) for name, length in zip("abcde", (4, 4, 9, 1, 8), strict=True)}
    files = shard_files(specs, 8)
    assert {name: list(part) for name, part in files.items()} == {
        "model-00001-of-00004.safetensors": ["a", "b"],
        "model-00002-of-00004.safetensors": ["c"],
        "model-00003-of-00004.safetensors": ["d"],
        "model-00004-of-00004.safetensors": ["e"],
    }
    assert list(shard_files(specs, 26)) == ["model.safetensors"]


def test_several_files_have_an_index_and_are_the_same_model(tmp_path: Path) -> None:
    model = Model()
    output = there_and_back(model, tmp_path, max_shard_size="4KB")
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert len(list(output.glob("model-*"))) == len(set(index["weight_map"].values())) > 4
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.tensors.values())
    assert same(stored(output), without_offset_rows(model.tensors))
    _, info = OPTForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("4KB", 4000), ("3 MiB", 3 << 20), ("2gb", 2 * 10**9), ("1GiB", 1 << 30)]
)
def test_sizes_are_numbers_with_a_unit(text: str, size: int) -> None:
    assert ExportConfig(checkpoint_dir="c", max_shard_size=text).max_shard_bytes == size


def test_a_tokenizer_is_copied_when_named(tmp_path: Path) -> None:
    output = there_and_back(Model(), tmp_path)
    assert not (output / "vocab.json").exists()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("vocab.json", "merges.txt", "pytorch_model.bin"):
        (tokenizer / name).write_text(name)
    for source in (tokenizer, output):  # the second one is being replaced
        run(tmp_path / "checkpoint", output, tokenizer_dir=str(source))
        assert [(output / name).read_text() for name in ("vocab.json", "merges.txt")] == ["vocab.json", "merges.txt"]
    assert not (output / "pytorch_model.bin").exists()


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    there_and_back(Model(), tmp_path)
    with pytest.raises(UserError, match=rf"--tokenizer_dir {tmp_path} holds none of tokenizer\.json, "):
        run(tmp_path / "checkpoint", tmp_path / "hf", tokenizer_dir=str(tmp_path))


def test_only_an_export_is_replaced(tmp_path: Path) -> None:
    output = there_and_back(Model(), tmp_path)
    run(tmp_path / "checkpoint", output, max_shard_size="4KB")
    assert not (output / "model.safetensors").exists()
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    for mine in ("model", "checkpoint"):
        with pytest.raises(UserError, match="exists and is not an earlier output"):
            run(tmp_path / "checkpoint", tmp_path / mine)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_rank", stop)
    with pytest.raises(KeyboardInterrupt):
        there_and_back(Model(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model"]


def test_the_export_says_where_it_is_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = there_and_back(packable(), tmp_path, use_weight_only=True, dtype="float16")
    assert json.loads((output / "opt_trt_export.json").read_text())["checkpoint_config"]["target_sm"] == 80
    assert capsys.readouterr().out == ""
    run(tmp_path / "checkpoint", output, log_level="info")
    assert "36 tensors in 1 file, 1.2 MB, W8A16 dequantized to float16, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_sm": None}, r'config\.json does not say which GPU its weights are packed for; add "target_sm": 80'),
        ({"norm_epsilon": 1e-6}, "has norm_epsilon 1e-06, but transformers' OPT computes with 1e-05 only"),
    ],
)
def test_what_cannot_be_undone_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    there_and_back(packable(), tmp_path, use_weight_only=True)
    checkpoint = tmp_path / "checkpoint"
    write_config(checkpoint, replace(read_config(checkpoint), **changes))
    with pytest.raises(UserError, match=says):
        run(checkpoint, tmp_path / "hf")


@pytest.mark.parametrize(("end", "found"), [([2, 5], [2, 5]), (None, None), ([7], 7)])
def test_end_tokens_go_through_the_checkpoint_and_come_back(tmp_path: Path, end: Any, found: Any) -> None:
    output = there_and_back(Model(config={"eos_token_id": end}), tmp_path)
    checkpoint = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert checkpoint.get("end_token_ids", "none") == {"[2, 5]": [2, 5], "None": [], "[7]": "none"}[str(end)]
    assert OPTForCausalLM.from_pretrained(output).generation_config.eos_token_id == found
