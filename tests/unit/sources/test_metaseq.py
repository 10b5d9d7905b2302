"""Every variant of metaseq files converts to the bytes of the same model from Hugging Face."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.sources import metaseq, open_source
from opt_trt.sources.metaseq import settings, sizes
from opt_trt.sources.metaseq.reading import OPEN_FILES, JoinedTensor, OpenFiles
from opt_trt.sources.opt import EMBEDDING, OptConfig
from tests.unit._metaseq import Metaseq
from tests.unit._models import Model

TINY = sizes.Size("OPT-tiny", 16, 2, 4, 40, vocab_size=48, max_position_embeddings=12)
VARIANTS: dict[str, dict[str, Any]] = {
    "A": {"fused": False, "name": "restored.pt", "settings": "args"},
    "C": {"name": "reshard-model_part-0.pt"},
    "C in 2 parts": {"parts": 2, "settings": "dict"},
    "C in 4 parts": {"parts": 4},
    "C of OPT-IML": {"parts": 2, "name": "checkpoint_1_6000.pt{part}.pt"},
    "C with separate k, v, q": {"parts": 2, "fused": False},
    "D": {"parts": 2, "layout": "one", "settings": "args"},
    "D in 4 parts": {"parts": 4, "layout": "one"},
    "E": {"parts": 2, "layout": "layers"},
    "E named -shard0": {"parts": 2, "layout": "layers", "name": "reshard{part}-shard0.pt"},
    "F": {"parts": 2, "shards": 3, "layout": "layers", "metadata": True, "name": "checkpoint_last{part}{shard}.pt"},
    "F without metadata": {"parts": 2, "shards": 12, "layout": "layers", "name": "checkpoint_last{part}{shard}.pt"},
    "F in 124 shards": {"shards": 124, "layout": "layers", "metadata": True},  # 119 would give the same lengths
}
Convert = Callable[..., str]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the model of the tests to the published sizes."""
    monkeypatch.setattr("opt_trt.sources.metaseq.flat.PUBLISHED", (*sizes.PUBLISHED, TINY))
    monkeypatch.setattr("opt_trt.sources.metaseq.settings.PUBLISHED", (*sizes.PUBLISHED, TINY))


def digest(directory: Path, output_dir: Path) -> str:
    """Return one hash of all files that a conversion writes."""
    convert(ConvertConfig(model_dir=str(directory), output_dir=str(output_dir), tp_size=2, log_level="error"))
    files = sorted(output_dir.iterdir())
    assert len(files) == 3
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("hf")
    return digest(Model(dtype=torch.float16).write(directory / "model"), directory / "out")


@pytest.mark.parametrize("beside", ["", "config.json"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_converts_to_the_same_bytes(tmp_path: Path, expected: str, variant: str, beside: str) -> None:
    model = Model(dtype=torch.float16)
    how = VARIANTS[variant] | ({"settings": ""} if beside else {})
    directory = Metaseq(model, **how).write(tmp_path / "model")
    if beside:
        (directory / beside).write_text(json.dumps(model.config))
    assert digest(directory, tmp_path / "out") == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_sizes_need_nothing_beside_the_tensors(
    tmp_path: Path, expected: str, variant: str, published: None
) -> None:
    directory = Metaseq(Model(dtype=torch.float16), **VARIANTS[variant] | {"settings": ""}).write(tmp_path / "model")
    assert digest(directory, tmp_path / "out") == expected


@pytest.mark.parametrize("said", ["cfg", "published"])
def test_350m_is_post_norm_with_projections(tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(width=8, pre_norm=False)
    if said == "published":
        small = sizes.Size("OPT-350M, smaller", 16, 2, 4, 40, do_layer_norm_before=False)
        monkeypatch.setattr(settings, "PUBLISHED", (small,))
    how = {"settings": "cfg" if said == "cfg" else "", "fused": False}
    directory = Metaseq(model, **how).write(tmp_path / "metaseq")  # type: ignore[arg-type]
    found = open_source(directory).config
    assert (found.do_layer_norm_before, found.has_final_layer_norm, found.word_embed_proj_dim) == (False, False, 8)
    assert digest(directory, tmp_path / "a") == digest(model.write(tmp_path / "hf"), tmp_path / "b")


def test_a_pre_norm_model_may_lack_the_final_layer_norm_if_its_training_says_so(tmp_path: Path) -> None:
    model = Model(config={"_remove_final_layer_norm": True})
    directory = Metaseq(model, stated={"decoder_normalize_before": True}).write(tmp_path / "metaseq")
    assert digest(directory, tmp_path / "a") == digest(model.write(tmp_path / "hf"), tmp_path / "b")


def test_the_model_parallel_trainings_false_normalize_before_is_not_believed(tmp_path: Path) -> None:
    """The code of the training ignored this setting, as the layer norm after the last layer shows."""
    how = Metaseq(Model(), parts=2, stated={"decoder_normalize_before": False})
    assert open_source(how.write(tmp_path)).config.do_layer_norm_before


@pytest.mark.parametrize("variant", ["A", "C in 2 parts"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_output_projection_is_the_head_unless_it_is_the_embedding(tmp_path: Path, variant: str, tied: bool) -> None:
    model = Model()
    model.tensors["lm_head.weight"] = model.tensors["model.decoder.embed_tokens.weight"] + (0.0 if tied else 1.0)
    model.config["tie_word_embeddings"] = tied
    directory = Metaseq(model, **VARIANTS[variant]).write(tmp_path / "metaseq")
    assert open_source(directory).config.tie_word_embeddings is tied
    assert digest(directory, tmp_path / "a") == digest(model.write(tmp_path / "hf"), tmp_path / "b")


def test_hyper_parameters_are_those_of_shapes_and_training(tmp_path: Path) -> None:
    assert open_source(Metaseq(Model(), parts=2).write(tmp_path)).config == OptConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40,
        max_position_embeddings=12, word_embed_proj_dim=16, do_layer_norm_before=True, remove_final_layer_norm=False,
        tie_word_embeddings=True, bos_token_id=2, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def test_the_published_sizes_are_opts() -> None:
    """The number of parameters is V*E + 2050*H + L*(12*H^2 + 13*H), and those of a final norm or projections."""
    counts = {}
    for size in sizes.PUBLISHED:
        hidden, layers = size.hidden_size, size.num_hidden_layers
        assert size.ffn_dim == 4 * hidden and hidden % size.num_attention_heads == 0
        outer = 50272 * hidden + 2050 * hidden + 2 * hidden
        if not size.do_layer_norm_before:
            outer = 50272 * 512 + 2050 * hidden + 2 * 512 * hidden
        counts[size.name] = outer + layers * (12 * hidden**2 + 13 * hidden)
    assert counts == {
        "OPT-125M": 125_239_296, "OPT-350M": 331_196_416, "OPT-1.3B": 1_315_758_080, "OPT-2.7B": 2_651_596_800,
        "OPT-6.7B": 6_658_473_984, "OPT-13B": 12_853_473_280, "OPT-30B": 29_974_540_288, "OPT-66B": 65_719_701_504,
        "OPT-175B": 174_604_468_224,
    }  # fmt: skip


def test_a_layer_of_175b_lies_in_124_shards_as_published() -> None:
    """Its 226,576,896 elements lie in shards of 1,827,234; fc1[1537, 5172] is element 1,241,838 of shard 51."""
    layout = sizes.flat_layout(sizes.PUBLISHED[-1], 8, layered=True)
    shapes = layout["decoder.layers.15.flat_param_0"]
    assert sizes.elements(shapes) == 226_576_896 and sizes.elements(layout["flat_param_0"]) == 102_432_768
    before = shapes[: [name for name, _ in shapes].index("decoder.layers.15.fc1.weight")]
    element = sizes.elements(before) + 1537 * 12288 + 5172
    assert divmod(element, -(-226_576_896 // 124)) == (51, 1_241_838)


def test_q_k_and_v_are_blocks_of_every_part_in_the_order_k_v_q(tmp_path: Path) -> None:
    model = Model(layers=1)
    for value, name in enumerate("kvq"):
        rows = torch.arange(16.0) + 100 * value
        model.tensors[f"model.decoder.layers.0.self_attn.{name}_proj.bias"] = rows
    how = Metaseq(model, parts=2)
    assert how.part(1)["decoder.layers.0.self_attn.qkv_proj.bias"].tolist() == [
        *range(8, 16), *range(108, 116), *range(208, 216),
    ]  # fmt: skip
    source = open_source(how.write(tmp_path))
    for value, name in enumerate("kvq"):
        rows = torch.cat(list(source.blocks(f"decoder.layers.0.self_attn.{name}_proj.bias")))
        assert rows.tolist() == [100 * value + row for row in range(16)]


def test_tensors_may_be_views_of_one_storage_and_slices_of_wider_ones(tmp_path: Path, expected: str) -> None:
    """Unflattened files have such tensors, and so have the files of tools that cut parts out of whole matrices."""
    model, how = Model(dtype=torch.float16), Metaseq(Model(dtype=torch.float16), fused=False)
    whole = torch.cat([tensor.flatten() for tensor in model.tensors.values()])
    start = 0
    for name, tensor in model.tensors.items():
        how.model.tensors[name] = whole[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    wide = torch.cat([torch.zeros(16, 3, dtype=torch.float16), model.tensors["model.decoder.layers.1.fc2.weight"]], 1)
    how.model.tensors["model.decoder.layers.1.fc2.weight"] = wide[:, 3:]
    how.slice = lambda name, tensor, part: tensor  # type: ignore[method-assign]
    assert digest(how.write(tmp_path / "model"), tmp_path / "out") == expected


def test_shards_are_taken_by_number_and_files_in_any_order(tmp_path: Path, expected: str) -> None:
    """With 12 shards, shard 10 comes before shard 2 in the order of names."""
    how = Metaseq(Model(dtype=torch.float16), parts=2, shards=12, layout="layers")
    directory = how.write(tmp_path / "model")
    names = sorted(path.name for path in directory.iterdir())
    assert names.index("reshard-model_part-0-shard10.pt") < names.index("reshard-model_part-0-shard2.pt")
    for name in names[::-1]:
        shutil.copy(directory / name, directory / f"{name}.copy")
        (directory / f"{name}.copy").rename(directory / name)
    assert digest(directory, tmp_path / "out") == expected


def test_hugging_face_weights_beside_pt_files_are_what_is_read(tmp_path: Path) -> None:
    directory = Model().write(tmp_path)
    torch.save({"step": 3}, directory / "optimizer.pt")
    assert not metaseq.recognizes(directory)
    assert open_source(directory).where(EMBEDDING).endswith("model.safetensors")


def test_replicated_tensors_are_compared_and_the_largest_difference_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert_and_read(how: Metaseq, name: str) -> str:
        directory = how.write(tmp_path / name)
        convert(ConvertConfig(model_dir=str(directory), output_dir=str(tmp_path / "out")))
        return capsys.readouterr().out.splitlines()[0]

    assert convert_and_read(Metaseq(Model(), parts=2), "equal") == (
        "replicated tensors agree in 2 parts, largest difference 0"
    )
    drifted = Drifted(Model(), parts=2)
    assert convert_and_read(drifted, "drifted") == (
        "replicated tensors agree in 2 parts, largest difference 0.000244141 (decoder.layer_norm.bias); part 0 is taken"
    )


class Drifted(Metaseq):
    """Part 1 differs by 2**-12 where it should equal part 0."""

    drift = 2.0**-12

    def part(self, part: int) -> dict[str, torch.Tensor]:
        tensors = super().part(part)
        tensors["decoder.layer_norm.bias"] = torch.full((16,), 0.5 + self.drift * part)
        return tensors


def test_only_a_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    source = open_source(Metaseq(Model(), shards=OPEN_FILES + 8, layout="layers", metadata=True).write(tmp_path))
    tensor = source.tensors["decoder.embed_tokens.weight"]  # type: ignore[attr-defined]
    assert isinstance(tensor, JoinedTensor)
    whole = tensor.pieces[0]
    assert len(whole.segments) > 1
    with OpenFiles() as files:
        for other in source.tensors.values():  # type: ignore[attr-defined]
            files.read(other.pieces[0])
        assert len(files.files) == OPEN_FILES
