"""A checkpoint holds exactly the tensors that its config.json asks for, when it is written and when it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from opt_trt.checkpoint.reader import Checkpoint, read_config, write_config
from opt_trt.checkpoint.spec import tensor_spec
from opt_trt.checkpoint.writer import TensorSpec, rank_metadata, write_rank
from opt_trt.errors import UserError
from opt_trt.model.config import ModelConfig
from opt_trt.model.mapping import Mapping

CONFIG = ModelConfig(
    architecture="OPTForCausalLM", dtype="float16", num_hidden_layers=1, num_attention_heads=2, hidden_size=8,
    intermediate_size=12, vocab_size=10, max_position_embeddings=6, do_layer_norm_before=True,
)  # fmt: skip
DENSE = "transformer.layers.0.attention.dense.bias"


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s.shape, generator=generator).to(s.dtype) for n, s in tensor_spec(CONFIG).items()}


def write(directory: Path, values: dict[str, torch.Tensor] | None = None) -> Path:
    """Write a checkpoint with the safetensors library, so that it may be one that our writer would refuse."""
    write_config(directory, CONFIG)
    save_file(tensors() if values is None else values, directory / "rank0.safetensors")
    return directory


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        Checkpoint(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_spec_has_name_shape_and_dtype() -> None:
    spec = tensor_spec(CONFIG)
    assert len(spec) == 17
    assert spec["transformer.layers.0.mlp.fc.weight"] == TensorSpec((12, 8), torch.float16)
    assert spec["transformer.layers.0.mlp.fc.weight"].nbytes == 192


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_written_files_are_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    values = {"b": torch.tensor([[1.5, -2.0], [0.0, 3.0]], dtype=dtype), "a": torch.tensor([7.0], dtype=dtype)}
    spec = {name: TensorSpec(tuple(tensor.shape), dtype) for name, tensor in values.items()}
    write_rank(tmp_path / "x", spec, reversed(list(values.items())))
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], values[name]) and found[name].dtype == dtype for name in values)
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_data_start_on_a_cache_line(tmp_path: Path) -> None:
    for length in range(1, 20):
        write_rank(tmp_path / "x", {"n" * length: TensorSpec((1,), torch.float32)}, [("n" * length, torch.zeros(1))])
        assert (8 + int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")) % 64 == 0


@pytest.mark.parametrize("gather_bytes", [1, 20, 1 << 20])
def test_tensors_of_any_stride_are_written_in_row_major_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gather_bytes: int
) -> None:
    monkeypatch.setattr("opt_trt.checkpoint.writer.GATHER_BYTES", gather_bytes)
    tensor = torch.arange(6.0).view(2, 3).T
    write_rank(tmp_path / "x", {"a": TensorSpec((3, 2), torch.float32)}, [("a", tensor)])
    assert load_file(tmp_path / "x")["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_tensors_are_taken_one_at_a_time(tmp_path: Path) -> None:
    spec = {"a": TensorSpec((64,), torch.float32), "b": TensorSpec((64,), torch.float32)}

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(64)
        assert (tmp_path / "x").read_bytes().endswith(torch.ones(64).numpy().tobytes())
        yield "b", torch.zeros(64)

    write_rank(tmp_path / "x", spec, stream())
    assert load_file(tmp_path / "x")["b"].eq(0).all()


def test_the_writer_names_missing_extra_repeated_and_mis_shaped_tensors_together(tmp_path: Path) -> None:
    f32 = torch.float32
    spec = {name: TensorSpec((2,), f32) for name in ("shape", "dtype", "twice", "absent")}
    given = [
        ("shape", torch.zeros(3)), ("dtype", torch.zeros(2).half()), ("twice", torch.zeros(2)),
        ("twice", torch.zeros(2)), ("foreign", torch.zeros(2)),
    ]  # fmt: skip
    with pytest.raises(UserError) as caught:
        write_rank(tmp_path / "x", spec, given)
    for part in (
        "shape is F32[3], expected F32[2]", "dtype is F16[2], expected F32[2]", "twice came twice",
        "foreign is unexpected", "absent is missing",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_reading_gives_every_tensor_in_the_models_order(tmp_path: Path) -> None:
    found = list(Checkpoint(write(tmp_path)).tensors())
    assert [name for name, _ in found] == list(tensor_spec(CONFIG))
    assert all(torch.equal(tensor, tensors()[name]) for name, tensor in found)


def test_one_tensor_can_be_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write(tmp_path))
    assert torch.equal(checkpoint.tensor(DENSE), tensors()[DENSE])
    assert checkpoint.nbytes == sum(t.nbytes for t in tensors().values())


def test_config_comes_back_as_written(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    assert read_config(tmp_path) == CONFIG


def test_the_reader_names_missing_extra_and_mis_shaped_tensors_together(tmp_path: Path) -> None:
    values = tensors() | {"foreign": torch.zeros(1), "lm_head.weight": torch.zeros(10, 8)}
    del values[DENSE]
    values["transformer.ln_f.bias"] = torch.zeros(9).half()
    text = refusal(write(tmp_path, values))
    for part in (
        f"{DENSE} is missing", "foreign is unexpected", "lm_head.weight is F32[10, 8], expected F16[10, 8]",
        "transformer.ln_f.bias is F16[9], expected F16[8]", str(tmp_path / "rank0.safetensors"),
    ):  # fmt: skip
        assert part in text


def test_long_lists_of_differences_are_cut(tmp_path: Path) -> None:
    assert "and 12 more" in refusal(write(tmp_path, {"foreign": torch.zeros(1)}))


def test_integers_in_a_tensor_are_named(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, tensors() | {DENSE: torch.zeros(8, dtype=torch.int8)}))
    assert f"{DENSE} is I8[8], expected F16[8]" in text


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_rank_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path) / "rank0.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is truncated or not safetensors" in refusal(tmp_path)


def test_rank_files_must_be_as_many_as_config_says(tmp_path: Path) -> None:
    directory = write(tmp_path)
    save_file({"a": torch.zeros(1)}, directory / "rank1.safetensors")
    assert "has world_size 1, but the rank files there are rank0.safetensors, rank1.safetensors" in refusal(directory)
    for path in directory.glob("rank*"):
        path.unlink()
    assert "the rank files there are none" in refusal(directory)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "LlamaForCausalLM"}, "architecture 'LlamaForCausalLM', only 'OPTForCausalLM'"),
        ({"hidden_act": "silu"}, "hidden_act 'silu', only 'relu' or 'gelu'"),
        ({"quantization": {"quant_algo": "FP8"}}, "quant_algo 'FP8', only None or 'W8A16' or 'W4A16'"),
        ({"quantization": {"kv_cache_quant_algo": "INT8"}}, "kv_cache_quant_algo 'INT8', only None"),
        (
            {"mapping": {"world_size": 2, "tp_size": 1, "pp_size": 2}},
            "pp_size 2 leaves stages without a layer; use at most 1",
        ),
        ({"dtype": "int8"}, "dtype must be float32 or bfloat16 or float16"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_a_config_that_is_not_such_a_checkpoint_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict() | change))
    assert says in refusal(tmp_path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    assert f"expected {tmp_path}/config.json, found nothing there" in refusal(tmp_path)


def test_the_second_of_two_ranks_is_read_from_its_file(tmp_path: Path) -> None:
    config = ModelConfig(**{**vars(CONFIG), "mapping": Mapping(2, tp_size=2)})
    write_config(tmp_path, config)
    for rank in range(2):
        values = {n: torch.full(s.shape, float(rank)).to(s.dtype) for n, s in tensor_spec(config).items()}
        save_file(values, tmp_path / f"rank{rank}.safetensors")
    checkpoint = Checkpoint(tmp_path, rank=1)
    assert all(tensor.eq(1).all() for _, tensor in checkpoint.tensors())
    assert checkpoint.tensor("lm_head.weight").shape == (5, 8)


def two_ranks(directory: Path) -> Path:
    config = replace(CONFIG, mapping=Mapping(2, tp_size=2))
    write_config(directory, config)
    for rank in range(2):
        spec = tensor_spec(config, rank)
        values = ((name, torch.zeros(s.shape, dtype=s.dtype)) for name, s in spec.items())
        write_rank(directory / f"rank{rank}.safetensors", spec, values, rank_metadata(rank))
    return directory


def test_rank_files_that_were_swapped_or_copied_are_named(tmp_path: Path) -> None:
    """Their names and shapes are the same, so only the metadata tell. TensorRT-LLM's files have no such metadata."""
    files = [two_ranks(tmp_path) / f"rank{rank}.safetensors" for rank in range(2)]
    assert [Checkpoint(tmp_path, rank).path for rank in range(2)] == files
    files[0].rename(tmp_path / "x")
    files[1].rename(files[0])
    (tmp_path / "x").rename(files[1])
    for rank in range(2):
        with pytest.raises(UserError, match=rf"rank{rank}\.safetensors holds the tensors of rank {1 - rank}"):
            Checkpoint(tmp_path, rank)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mapping": {"world_size": 1, "tp_size": None, "pp_size": 1}}, ""),
        ({"mapping": {"world_size": 10**9, "tp_size": 10**9}}, "must be at most 1024"),
        ({"norm_epsilon": float("nan")}, "is not readable JSON (NaN is no number)"),
        ({"norm_epsilon": 1e308}, "norm_epsilon must be from 0 to 1"),
        ({"norm_epsilon": -1}, "norm_epsilon must be from 0 to 1"),
        ({"hidden_size": 10**400, "num_attention_heads": 10**400}, "must be below 2**31"),
        ({"bos_token_id": 10**30}, "bos_token_id must be below 2**31"),
    ],
)
def test_numbers_beyond_those_of_any_model_are_named(tmp_path: Path, values: Any, says: str) -> None:
    path = write(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    assert says in refusal(tmp_path) if says else read_config(tmp_path) == CONFIG


@pytest.mark.parametrize("content", [b"", b"\xff" * 8 + b"{}", bytes(100), (2**20).to_bytes(8, "little") + b"{}"])
def test_a_header_that_the_file_cannot_hold_is_named(tmp_path: Path, content: bytes) -> None:
    (write(tmp_path) / "rank0.safetensors").write_bytes(content)
    assert "is truncated or not safetensors (a header of" in refusal(tmp_path)
