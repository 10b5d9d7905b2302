"""The cut of tensors for tensor-parallel ranks equals literals, and joining undoes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.model.config import ModelConfig
from opt_trt.model.mapping import Mapping
from opt_trt.model.placement import (
    COLUMNS,
    QKV_ROWS,
    ROWS,
    VOCAB_ROWS,
    WHOLE,
    Placement,
    Split,
    is_linear,
    placements,
    stage_names,
)

CONFIG = ModelConfig(
    architecture="OPTForCausalLM", dtype="float32", num_hidden_layers=2, num_attention_heads=4, hidden_size=8,
    intermediate_size=12, vocab_size=10, max_position_embeddings=6, do_layer_norm_before=True,
)  # fmt: skip
TABLE = torch.tensor(
    [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33], [40, 41, 42, 43], [50, 51, 52, 53]]
)


def at(tp_size: int, **changes: object) -> ModelConfig:
    return replace(CONFIG, mapping=Mapping(tp_size, tp_size=tp_size), **changes)  # type: ignore[arg-type]


def cut(split: Split, tensor: torch.Tensor, rank: int) -> Any:
    return Placement(tuple(tensor.shape), split).cut(tensor, 2, rank).tolist()


def test_rows_are_cut_in_order() -> None:
    assert cut(ROWS, TABLE, 1) == [[30, 31, 32, 33], [40, 41, 42, 43], [50, 51, 52, 53]]


def test_columns_are_cut_in_order() -> None:
    assert cut(COLUMNS, TABLE[:2], 1) == [[2, 3], [12, 13]]


def test_qkv_rows_are_cut_in_each_of_q_k_and_v() -> None:
    assert cut(QKV_ROWS, TABLE, 0) == [[0, 1, 2, 3], [20, 21, 22, 23], [40, 41, 42, 43]]
    assert cut(QKV_ROWS, torch.arange(6), 1) == [1, 3, 5]


def test_vocabulary_rows_are_padded_with_zeros() -> None:
    assert cut(VOCAB_ROWS, TABLE[:3, :2], 0) == [[0, 1], [10, 11]]
    assert cut(VOCAB_ROWS, TABLE[:3, :2], 1) == [[20, 21], [0, 0]]


def test_a_rank_beyond_the_vocabulary_holds_padding_only() -> None:
    part = Placement((5, 2), VOCAB_ROWS).cut(torch.ones(5, 2), 4, 3)
    assert part.tolist() == [[0, 0], [0, 0]]


def test_whole_tensors_are_on_every_rank() -> None:
    assert cut(WHOLE, TABLE, 0) == cut(WHOLE, TABLE, 1) == TABLE.tolist()


@pytest.mark.parametrize("parallel", [(False, 0), (True, 0), (True, 1)])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_joining_the_parts_restores_every_tensor(tp_size: int, parallel: tuple[bool, int]) -> None:
    config = at(tp_size, use_parallel_embedding=parallel[0], embedding_sharding_dim=parallel[1])
    for name, place in placements(config).items():
        whole = torch.randn(place.shape)
        parts = [place.cut(whole, tp_size, rank) for rank in range(tp_size)]
        assert {tuple(part.shape) for part in parts} == {place.local_shape(tp_size)}, name
        assert torch.equal(place.join(parts), whole), name


def test_one_rank_gets_the_tensor_itself() -> None:
    assert all((whole := torch.empty(p.shape)) is p.cut(whole, 1, 0) for p in placements(CONFIG).values())


def test_cutting_rows_copies_nothing() -> None:
    whole = torch.empty(12, 8)
    assert Placement((12, 8), ROWS).cut(whole, 2, 0).data_ptr() == whole.data_ptr()


def test_two_ranks_hold_tensorrt_llms_shapes() -> None:
    shapes = {name: place.local_shape(2) for name, place in placements(at(2)).items() if ".layers.1" not in name}
    layer = "transformer.layers.0"
    assert shapes == {
        "transformer.vocab_embedding.weight": (10, 8), "transformer.position_embedding.weight": (6, 8),
        f"{layer}.input_layernorm.weight": (8,), f"{layer}.input_layernorm.bias": (8,),
        f"{layer}.attention.qkv.weight": (12, 8), f"{layer}.attention.qkv.bias": (12,),
        f"{layer}.attention.dense.weight": (8, 4), f"{layer}.attention.dense.bias": (8,),
        f"{layer}.post_layernorm.weight": (8,), f"{layer}.post_layernorm.bias": (8,),
        f"{layer}.mlp.fc.weight": (6, 8), f"{layer}.mlp.fc.bias": (6,),
        f"{layer}.mlp.proj.weight": (8, 6), f"{layer}.mlp.proj.bias": (8,),
        "transformer.ln_f.weight": (8,), "transformer.ln_f.bias": (8,), "lm_head.weight": (5, 8),
    }  # fmt: skip


@pytest.mark.parametrize(("dim", "shapes"), [(0, ((3, 8), (2, 8))), (1, ((10, 2), (6, 2)))])
def test_parallel_embedding_cuts_both_tables(dim: int, shapes: tuple[tuple[int, ...], ...]) -> None:
    table = placements(at(4, use_parallel_embedding=True, embedding_sharding_dim=dim))
    names = ("transformer.vocab_embedding.weight", "transformer.position_embedding.weight")
    assert tuple(table[name].local_shape(4) for name in names) == shapes


@pytest.mark.parametrize("changes", [{"do_layer_norm_before": False}, {"remove_final_layer_norm": True}])
def test_models_without_a_final_layer_norm_have_no_ln_f(changes: dict[str, bool]) -> None:
    assert not [name for name in placements(replace(CONFIG, **changes)) if "ln_f" in name]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tp_size", "changes", "says"),
    [
        (8, {}, r"tp_size 8 does not divide 4 attention heads, intermediate_size 12; use one of 1, 2, 4"),
        (
            3,
            {"use_parallel_embedding": True, "embedding_sharding_dim": 1},
            r"divide 4 attention heads, hidden_size 8 \(embedding_sharding_dim 1\); use one of 1, 2, 4",
        ),
        (4, {"intermediate_size": 10}, "tp_size 4 does not divide intermediate_size 10; use one of 1, 2"),
        (2, {"intermediate_size": 11}, "tp_size 2 does not divide intermediate_size 11; use 1"),
    ],
)
def test_a_tp_size_that_does_not_fit_is_named(tp_size: int, changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        placements(at(tp_size, **changes))


def at_stages(pp_size: int, layers: int) -> ModelConfig:
    return replace(CONFIG, num_hidden_layers=layers, mapping=Mapping(pp_size, pp_size=pp_size))


def test_stages_number_their_layers_from_zero() -> None:
    config = at_stages(2, layers=3)
    names = [stage_names(config, stage) for stage in range(2)]
    assert names[0]["transformer.layers.1.mlp.fc.bias"] == "transformer.layers.1.mlp.fc.bias"
    assert names[1]["transformer.layers.2.mlp.fc.bias"] == "transformer.layers.0.mlp.fc.bias"
    assert not names[0].keys() & names[1].keys()
    assert names[0].keys() | names[1].keys() == placements(config).keys()


def test_tables_are_on_the_first_stage_and_head_and_last_norm_on_the_last() -> None:
    outside = [{n for n in stage_names(at_stages(3, 3), stage) if ".layers." not in n} for stage in range(3)]
    assert outside == [
        {"transformer.vocab_embedding.weight", "transformer.position_embedding.weight"},
        set(),
        {"transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight"},
    ]


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(UserError, match="pp_size 3 leaves stages without a layer; use at most 2"):
        placements(at_stages(3, 2))


def test_the_four_products_of_a_layer_are_linears() -> None:
    linears = [name for name in placements(CONFIG) if is_linear(name) and ".0." in name]
    assert linears == [
        f"transformer.layers.0.{part}.weight" for part in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj")
    ]
