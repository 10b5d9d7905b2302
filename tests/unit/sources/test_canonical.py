"""Canonical tensors have TensorRT-LLM's form for every source: merged, shifted, folded and finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.sources import canonical, open_source
from opt_trt.sources.canonical import canonical_tensors
from tests.unit._models import Model

FC1 = "model.decoder.layers.0.fc1.weight"


def convert(model: Model, directory: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return dict(canonical_tensors(open_source(model.write(directory)), dtype))


def small(values: dict[str, list[float]]) -> Model:
    """Return a source of one layer, hidden 4 (or as given), with some vectors set by hand."""
    return Model(
        vocab=3,
        hidden=4,
        width=4,
        layers=1,
        ffn=4,
        positions=2,
        tensors={n: torch.tensor(v) for n, v in values.items()},
    )


def test_q_k_and_v_are_stacked_in_this_order(tmp_path: Path) -> None:
    attention = "model.decoder.layers.0.self_attn"
    vectors = {f"{attention}.{p}_proj.bias": [v] * 4 for p, v in (("v", 3.0), ("k", 2.0), ("q", 1.0))}
    tensors = convert(small(vectors), tmp_path)
    assert tensors["transformer.layers.0.attention.qkv.bias"].tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert tensors["transformer.layers.0.attention.qkv.weight"].shape == (12, 4)


def test_the_two_offset_rows_of_the_position_table_are_dropped(tmp_path: Path) -> None:
    model = small({})
    model.tensors["model.decoder.embed_positions.weight"] = torch.arange(16.0).view(4, 4)
    positions = convert(model, tmp_path)["transformer.position_embedding.weight"]
    assert positions.tolist() == [[8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]]


def test_the_two_layer_norms_and_the_two_linears_keep_their_places(tmp_path: Path) -> None:
    layer = "model.decoder.layers.0"
    parts = {"self_attn_layer_norm": 1.0, "final_layer_norm": 2.0, "self_attn.out_proj": 3.0, "fc1": 4.0, "fc2": 5.0}
    vectors = {f"{layer}.{part}.bias": [value] * 4 for part, value in parts.items()}
    tensors = convert(small(vectors | {"model.decoder.final_layer_norm.bias": [6.0] * 4}), tmp_path)
    names = ["layers.0.input_layernorm", "layers.0.post_layernorm", "layers.0.attention.dense"]
    names += ["layers.0.mlp.fc", "layers.0.mlp.proj", "ln_f"]
    assert [tensors[f"transformer.{name}.bias"][0].item() for name in names] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_projections_are_folded_into_embedding_and_head(tmp_path: Path) -> None:
    model = Model(vocab=2, hidden=4, width=2, layers=1, ffn=4, positions=2, pre_norm=False)
    model.tensors |= {
        "model.decoder.embed_tokens.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "model.decoder.project_in.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]]),
        "model.decoder.project_out.weight": torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 3.0]]),
    }
    tensors = convert(model, tmp_path)
    assert tensors["transformer.vocab_embedding.weight"].tolist() == [[1, 2, 3, -1], [3, 4, 7, -1]]
    assert tensors["lm_head.weight"].tolist() == [[1, 2, 2, 6], [3, 4, 6, 12]]


def test_a_fold_is_rounded_once(tmp_path: Path) -> None:
    """2049 is no fp16 number: a product with an early rounding of its factors or its sum would lose the 1."""
    model = Model(vocab=1, hidden=4, width=2, layers=1, ffn=4, positions=2, pre_norm=False)
    model.tensors |= {
        "model.decoder.embed_tokens.weight": torch.tensor([[2049.0, 1.0]]),
        "model.decoder.project_in.weight": torch.tensor([[1.0, -2048.0]] * 4),
        "model.decoder.project_out.weight": torch.tensor([[1.0] * 4, [-2048.0] * 4]),
    }
    tensors = convert(model, tmp_path, torch.float16)
    assert tensors["lm_head.weight"].tolist() == [[1.0] * 4]
    assert tensors["transformer.vocab_embedding.weight"].tolist() == [[1.0] * 4]


def test_blocks_are_put_together_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = convert(Model(width=8, pre_norm=False), tmp_path)
    monkeypatch.setattr("opt_trt.sources.stored.BLOCK_ELEMENTS", 40)
    in_blocks = convert(Model(width=8, pre_norm=False), tmp_path)
    assert whole.keys() == in_blocks.keys()
    assert all(torch.allclose(whole[name], in_blocks[name], rtol=0, atol=1e-7) for name in whole)  # folds may reorder


def test_a_tied_head_is_written_out(tmp_path: Path) -> None:
    tensors = convert(Model(), tmp_path)
    assert torch.equal(tensors["lm_head.weight"], tensors["transformer.vocab_embedding.weight"])


def test_an_equal_copy_of_a_tied_head_is_accepted(tmp_path: Path) -> None:
    model = Model()
    model.tensors["lm_head.weight"] = model.tensors["model.decoder.embed_tokens.weight"].clone()
    assert torch.equal(convert(model, tmp_path)["lm_head.weight"], model.tensors["lm_head.weight"])


def test_a_tied_head_that_differs_is_named(tmp_path: Path) -> None:
    model = Model()
    model.tensors["lm_head.weight"] = model.tensors["model.decoder.embed_tokens.weight"].clone()
    model.tensors["lm_head.weight"][-1, -1] += 1
    with pytest.raises(UserError, match=r"lm_head\.weight in .* differs from model\.decoder\.embed_tokens\.weight"):
        convert(model, tmp_path)


def test_an_untied_head_is_its_own(tmp_path: Path) -> None:
    head = torch.arange(48.0 * 16).view(48, 16)
    model = Model(config={"tie_word_embeddings": False}, tensors={"lm_head.weight": head})
    assert torch.equal(convert(model, tmp_path)["lm_head.weight"], head)


@pytest.mark.parametrize(
    ("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "infin")]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_not_finite_is_named_with_its_file(tmp_path: Path, value: float, word: str, dtype: torch.dtype) -> None:
    model = Model(dtype=dtype)
    model.tensors[FC1][7, 3] = value
    with pytest.raises(UserError, match=rf"{FC1} in {tmp_path}/model\.safetensors holds {word}"):
        convert(model, tmp_path, dtype)


@pytest.mark.parametrize("name", ["embed_tokens", "project_in", "project_out"])
def test_what_is_not_finite_in_a_fold_is_named(tmp_path: Path, name: str) -> None:
    model = Model(width=8, pre_norm=False)
    model.tensors[f"model.decoder.{name}.weight"][0, 0] = float("nan")
    with pytest.raises(UserError, match=rf"model\.decoder\.{name}\.weight.* holds NaN"):
        convert(model, tmp_path)


@pytest.mark.parametrize(("largest", "fits"), [(65504.0, True), (65519.0, True), (65520.0, False), (-65520.0, False)])
def test_what_fp16_cannot_hold_is_named_with_the_way_out(tmp_path: Path, largest: float, fits: bool) -> None:
    model = Model()
    model.tensors[FC1][0, 0] = largest
    if fits:
        assert convert(model, tmp_path, torch.float16)["transformer.layers.0.mlp.fc.weight"].abs().max() == 65504
        return
    with pytest.raises(UserError, match=rf"{FC1} in .* reaches 65520, beyond float16; convert with --dtype bfloat16"):
        convert(model, tmp_path, torch.float16)


def test_a_fold_beyond_fp16_is_named(tmp_path: Path) -> None:
    model = Model(width=8, pre_norm=False)
    model.tensors["model.decoder.project_out.weight"].fill_(1e4)
    model.tensors["model.decoder.embed_tokens.weight"].fill_(1e4)
    with pytest.raises(UserError, match=r"project_out\.weight .* beyond float16|times .*project_.*beyond float16"):
        convert(model, tmp_path, torch.float16)


def test_what_bf16_cannot_hold_points_to_float32(tmp_path: Path) -> None:
    model = Model()
    model.tensors[FC1][0, 0] = 3.4e38
    with pytest.raises(UserError, match="beyond bfloat16; convert with --dtype float32"):
        convert(model, tmp_path, torch.bfloat16)


def test_no_tensor_is_held_after_it_was_handed_out(tmp_path: Path) -> None:
    import weakref

    stream = canonical.canonical_tensors(open_source(Model().write(tmp_path)), torch.float32)
    _, first = next(stream)
    alive = weakref.ref(first)
    del first
    next(stream)
    assert alive() is None
