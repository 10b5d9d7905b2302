"""Checkpoints of several ranks: the parts of each rank, compared with literals and with Hugging Face's tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opt_trt.checkpoint.reader import read_config
from opt_trt.checkpoint.whole_model import WholeModel
from opt_trt.cli import parse
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from tests.unit._models import Model

Ranks = list[dict[str, torch.Tensor]]
SIX_HEADS = {"num_attention_heads": 6}


def run(model_dir: Path, output_dir: Path, **flags: Any) -> Ranks:
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(output_dir), log_level="error", **flags))
    return [load_file(output_dir / f"rank{r}.safetensors") for r in range(len(list(output_dir.glob("rank*"))))]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("embedding", [(False, 0), (True, 0), (True, 1)])
@pytest.mark.parametrize(("tp_size", "pp_size"), [(1, 2), (2, 1), (2, 3), (3, 2), (6, 1)])
def test_the_parts_of_all_ranks_make_up_the_model(
    tmp_path: Path, tp_size: int, pp_size: int, embedding: tuple[bool, int], workers: int
) -> None:
    model = Model(vocab=47, hidden=24, width=24, ffn=36, layers=5, positions=13, config=SIX_HEADS)
    source = model.write(tmp_path / "model")
    (expected,) = run(source, tmp_path / "whole")
    run(source, tmp_path / "out", tp_size=tp_size, pp_size=pp_size, workers=workers,
        use_parallel_embedding=embedding[0], embedding_sharding_dim=embedding[1])  # fmt: skip
    found = WholeModel(tmp_path / "out")
    assert found.shapes.keys() == expected.keys()
    assert all(torch.equal(found.tensor(name), expected[name]) for name in expected)


def test_config_records_the_mapping(tmp_path: Path) -> None:
    run(Model().write(tmp_path / "model"), tmp_path / "out", tp_size=2, pp_size=2)
    mapping = json.loads((tmp_path / "out" / "config.json").read_text())["mapping"]
    assert mapping == {"world_size": 4, "tp_size": 2, "pp_size": 2}


def test_ranks_of_a_stage_are_consecutive(tmp_path: Path) -> None:
    model = Model()
    ranks = run(model.write(tmp_path / "model"), tmp_path / "out", tp_size=2, pp_size=2, dtype="float32")
    fc = [model.tensors[f"model.decoder.layers.{layer}.fc1.weight"] for layer in range(2)]
    expected = [fc[0][:20], fc[0][20:], fc[1][:20], fc[1][20:]]
    assert all(torch.equal(r["transformer.layers.0.mlp.fc.weight"], e) for r, e in zip(ranks, expected, strict=True))


def test_embedding_is_on_the_first_stage_and_head_on_the_last(tmp_path: Path) -> None:
    ranks = run(Model(layers=3).write(tmp_path / "model"), tmp_path / "out", pp_size=3)
    outside = [{name.split(".")[-2] for name in rank if ".layers." not in name} for rank in ranks]
    assert outside == [{"vocab_embedding", "position_embedding"}, set(), {"ln_f", "lm_head"}]
    layers = [{name.split(".")[2] for name in rank if ".layers." in name} for rank in ranks]
    assert layers == [{"0"}, {"0"}, {"0"}]


def test_stages_hold_the_layers_asked_for(tmp_path: Path) -> None:
    source = Model(layers=4).write(tmp_path / "model")
    asked = parse(ConvertConfig, ["--model_dir", "m", "--pp_layers", "1", "1", "2"]).pp_layers
    (expected,) = run(source, tmp_path / "whole")
    ranks = run(source, tmp_path / "out", pp_size=3, pp_layers=asked)
    assert [len({name.split(".")[2] for name in rank if ".layers." in name}) for rank in ranks] == [1, 1, 2]
    assert read_config(tmp_path / "out").pp_layers == (1, 1, 2)
    found = WholeModel(tmp_path / "out")
    assert all(torch.equal(found.tensor(name), expected[name]) for name in expected)


@pytest.mark.parametrize("pp_layers", [(2, 2), (1, 1, 1), (0, 1, 3), (1, 1, 1, 1)])
def test_layers_that_do_not_fit_the_stages_are_refused(tmp_path: Path, pp_layers: tuple[int, ...]) -> None:
    source = Model(layers=4).write(tmp_path / "model")
    says = r"pp_layers must be 3 numbers of at least 1 \(pp_size\) that add up to 4 layers, found"
    with pytest.raises(UserError, match=says):
        run(source, tmp_path / "out", pp_size=3, pp_layers=pp_layers)


def test_layers_of_stages_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    run(Model(layers=4).write(tmp_path / "model"), tmp_path / "out", pp_size=2, pp_layers=(1, 3))
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pp_layers": [1, "3"]}))
    with pytest.raises(UserError, match=r"config.json: pp_layers must be a list of integers, found \[1, '3'\]"):
        read_config(tmp_path / "out")


def test_the_head_is_padded_and_the_embedding_is_not_unless_it_is_sharded(tmp_path: Path) -> None:
    model = Model(vocab=49)
    source = model.write(tmp_path / "model")
    for parallel, rows in ((False, 49), (True, 25)):
        ranks = run(source, tmp_path / "out", tp_size=2, use_parallel_embedding=parallel, dtype="float32")
        table = model.tensors["model.decoder.embed_tokens.weight"]
        assert all(rank["transformer.vocab_embedding.weight"].shape == (rows, 16) for rank in ranks)
        assert torch.equal(ranks[1]["lm_head.weight"], torch.cat((table[25:], torch.zeros(1, 16))))


def test_the_bias_after_a_sum_is_whole_on_every_rank(tmp_path: Path) -> None:
    model = Model()
    ranks = run(model.write(tmp_path / "model"), tmp_path / "out", tp_size=2, dtype="float32")
    bias = model.tensors["model.decoder.layers.1.self_attn.out_proj.bias"]
    assert all(torch.equal(rank["transformer.layers.1.attention.dense.bias"], bias) for rank in ranks)


def test_tables_with_projections_stay_whole_and_the_head_is_cut(tmp_path: Path) -> None:
    source = Model(width=8, pre_norm=False).write(tmp_path / "model")
    ranks = run(source, tmp_path / "out", tp_size=2, use_parallel_embedding=True, embedding_sharding_dim=1)
    assert not read_config(tmp_path / "out").use_parallel_embedding
    assert [r["transformer.vocab_embedding.weight"].shape for r in ranks] == [(48, 16)] * 2
    assert [r["lm_head.weight"].shape for r in ranks] == [(24, 16)] * 2


def test_fewer_ranks_replace_a_checkpoint_of_more(tmp_path: Path) -> None:
    source = Model().write(tmp_path / "model")
    run(source, tmp_path / "out", tp_size=4)
    run(source, tmp_path / "out", tp_size=2)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "rank0.safetensors", "rank1.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tp_size": 3}, r"tp_size 3 does not divide 4 attention heads, intermediate_size 40; use one of 1, 2, 4$"),
        (
            {"tp_size": 3, "use_parallel_embedding": True, "embedding_sharding_dim": 1},
            r"hidden_size 16 \(embedding_sharding_dim 1\); use one of 1, 2, 4$",
        ),
        ({"pp_size": 3}, "pp_size 3 leaves stages without a layer; use at most 2"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_named(tmp_path: Path, flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(Model().write(tmp_path / "model"), tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tp_size", "pp_size", "workers"])
@pytest.mark.parametrize("value", ["0", "-2"])
def test_sizes_below_one_are_refused(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{name} must be at least 1, found {value}"):
        parse(ConvertConfig, ["--model_dir", "m", f"--{name}", value])


def test_the_summary_counts_all_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model().write(tmp_path / "model")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "out"), tp_size=2))
    assert "58 tensors in 2 ranks" in capsys.readouterr().out
