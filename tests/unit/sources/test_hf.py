"""A Hugging Face directory is opened as it is, or an error names its problem."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.sources import hf, open_source
from opt_trt.sources.listed import ListedSource
from tests.unit._models import Model, save

PART = "model.decoder.layers.1.fc1.bias"


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(directory)
    text = str(caught.value)
    assert "\n" not in text
    return text


def with_config(tmp_path: Path, **values: Any) -> Path:
    return Model(config=values).write(tmp_path / "m")


def read(source: ListedSource, name: str) -> torch.Tensor:
    return torch.cat([block.clone() for block in source.blocks(name)])


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_read_as_stored(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model = Model(dtype=dtype)
    source = hf.open_source(model.write(tmp_path, kind))
    for name, tensor in model.tensors.items():
        found = read(source, name.removeprefix("model."))
        assert found.dtype == dtype and torch.equal(found, tensor)


def test_blocks_are_whole_rows_of_at_most_half_a_million_elements(tmp_path: Path) -> None:
    source = hf.open_source(Model(vocab=40_000).write(tmp_path))
    assert [tuple(b.shape) for b in source.blocks("decoder.embed_tokens.weight")] == [(32768, 16), (7232, 16)]


def test_a_bin_file_may_hold_views(tmp_path: Path) -> None:
    model = Model()
    fc1 = model.tensors["model.decoder.layers.0.fc1.weight"]
    both = torch.cat([torch.zeros(3, 16), fc1])
    model.tensors |= {"model.decoder.layers.0.fc1.weight": fc1.T.contiguous().T, PART: torch.arange(80.0)[5:45]}
    model.tensors["model.decoder.layers.1.fc1.weight"] = both[3:]
    source = hf.open_source(model.write(tmp_path, "bin"))
    assert torch.equal(read(source, "decoder.layers.0.fc1.weight"), fc1)
    assert torch.equal(read(source, "decoder.layers.1.fc1.weight"), fc1)
    assert torch.equal(read(source, "decoder.layers.1.fc1.bias"), torch.arange(5.0, 45.0))


def test_safetensors_are_preferred_to_bin(tmp_path: Path) -> None:
    Model().write(tmp_path, "bin")
    source = hf.open_source(Model().write(tmp_path))
    assert {entry.path.name for entry in source.tensors.values()} == {"model.safetensors"}


def test_of_a_tied_table_only_the_head_may_be_stored(tmp_path: Path) -> None:
    model = Model()
    table = model.tensors.pop("model.decoder.embed_tokens.weight")
    model.tensors["lm_head.weight"] = table
    source = hf.open_source(model.write(tmp_path))
    assert torch.equal(read(source, "decoder.embed_tokens.weight"), table)


def test_the_format_number_of_early_exports_is_passed_over(tmp_path: Path) -> None:
    source = hf.open_source(Model(tensors={"model.decoder.version": torch.tensor([3.0])}).write(tmp_path))
    assert not source.has("decoder.version")


def test_missing_extra_and_mis_shaped_tensors_are_named_together(tmp_path: Path) -> None:
    model = Model(tensors={"score.weight": torch.zeros(2, 16), "model.decoder.layers.0.fc2.bias": torch.zeros(17)})
    del model.tensors[PART]
    text = refusal(model.write(tmp_path))
    assert "missing: decoder.layers.1.fc1.bias" in text
    assert "unexpected: score.weight" in text
    assert "model.decoder.layers.0.fc2.bias is [17], expected [16]" in text


def test_a_long_list_of_missing_tensors_is_cut(tmp_path: Path) -> None:
    model = Model()
    model.config["num_hidden_layers"] = 4
    text = refusal(model.write(tmp_path))
    assert "decoder.layers.2.self_attn_layer_norm.weight" in text and "and 26 more" in text


def test_a_position_table_without_its_offset_rows_is_named(tmp_path: Path) -> None:
    model = Model(tensors={"model.decoder.embed_positions.weight": torch.zeros(12, 16)})
    text = refusal(model.write(tmp_path))
    assert "embed_positions.weight is [12, 16], expected [14, 16] (max_position_embeddings + 2 rows)" in text


def test_an_untied_head_must_be_stored(tmp_path: Path) -> None:
    assert "missing: lm_head.weight" in refusal(with_config(tmp_path, tie_word_embeddings=False))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_integer_weights_are_named(tmp_path: Path, kind: str) -> None:
    assert PART in refusal(Model(tensors={PART: torch.zeros(40, dtype=torch.int8)}).write(tmp_path, kind))


def test_two_spellings_of_a_tensor_are_refused(tmp_path: Path) -> None:
    model = Model()
    model.tensors["decoder.embed_tokens.weight"] = model.tensors["model.decoder.embed_tokens.weight"].clone()
    directory = model.write(tmp_path)
    save(model.tensors, directory / "model.safetensors", "safetensors")
    assert re.search("embed_tokens.*and .*embed_tokens.* are the same tensor; remove one", refusal(directory))


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, keep: int) -> None:
    directory = Model().write(tmp_path, kind)
    path = directory / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    path.write_bytes(path.read_bytes()[:keep])
    text = refusal(directory)
    assert str(path) in text and "fetch" in text


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    source = hf.open_source(Model().write(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"model\.safetensors ends in the middle of model\.decoder"):
        for name in source.tensors:
            list(source.blocks(name))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model-00002-of-00002.safetensors"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    directory = Model().write(tmp_path, shards=2 if "of" in name else 1)
    (directory / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert f"{name} is a git-lfs pointer" in refusal(directory)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax"), ("adapter_model.safetensors", "adapter"),
        ("tf_model-00001-of-00002.h5", "TensorFlow"), ("flax_model-00001-of-00002.msgpack", "Flax"),
        ("rust_model.ot", "Rust"), ("model.onnx", "ONNX"), ("weights.h5", "TensorFlow"), ("w.msgpack", "Flax"),
        ("model-00001-of-00002.safetensors", "without their index"),
        ("opt.gguf", r"llama\.cpp"), ("weights.bin", "under another name"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_by_name(tmp_path: Path, name: str, kind: str) -> None:
    Model().write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(UserError, match=rf"{kind}.*\({name}\)"):
        open_source(tmp_path)


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    Model().write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "has no weights: expected one of model.safetensors" in refusal(tmp_path)


def test_an_empty_directory_and_a_hub_name_are_named(tmp_path: Path) -> None:
    assert re.search(r"holds no checkpoint of a known format: metaseq .*; Hugging Face", refusal(tmp_path))
    assert "facebook/opt-125m is not a directory" in refusal(Path("facebook/opt-125m"))


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    Model().write(tmp_path)
    (tmp_path / "config.json").unlink()
    assert f"expected {tmp_path}/config.json" in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = Model().write(tmp_path, shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    assert "'model-00002-of-00003.safetensors', which is not beside it" in refusal(directory)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_one_file_beside_the_index_of_others_is_named(tmp_path: Path, kind: str) -> None:
    directory = Model().write(tmp_path, kind, shards=2)
    Model().write(tmp_path, kind)
    assert re.search(r"has .*, which names other files; remove one model", refusal(directory))


def test_an_index_of_the_one_file_is_accepted(tmp_path: Path) -> None:
    directory = Model().write(tmp_path)
    index = {"weight_map": dict.fromkeys(Model().tensors, "model.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_source(directory).has("decoder.embed_tokens.weight")


def test_a_shard_of_another_model_is_named(tmp_path: Path) -> None:
    directory = Model().write(tmp_path / "m", shards=2)
    Model(ffn=56).write(tmp_path / "other", shards=2)
    name = "model-00001-of-00002.safetensors"
    (tmp_path / "other" / name).rename(directory / name)
    assert "fc1.weight is [56, 16], expected [40, 16]" in refusal(directory)


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    directory = Model().write(tmp_path, shards=2)
    index = directory / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    first, second = sorted(set(values["weight_map"].values()))
    in_first = [n for n, file in values["weight_map"].items() if file == first]
    tensors = {n: t for n, t in Model().tensors.items() if values["weight_map"][n] == second or n == in_first[0]}
    save(tensors, directory / second, "safetensors")
    del values["weight_map"][in_first[0]]  # the index decides which one counts, if it lists the tensor
    index.write_text(json.dumps(values))
    assert re.search(rf"{in_first[0]} in .*{second} and {in_first[0]} in .*{first} are the same", refusal(directory))


def test_sharded_weights_without_their_first_file_are_named(tmp_path: Path) -> None:
    directory = Model().write(tmp_path, shards=2)
    values = json.loads((directory / "model.safetensors.index.json").read_text())
    kept = {n: file for n, file in values["weight_map"].items() if "00002-of" in file}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": kept}))
    assert "missing: decoder.embed_tokens.weight" in refusal(directory)


def test_a_state_dict_in_a_trainers_module_is_read(tmp_path: Path) -> None:
    model = Model()
    directory = model.write(tmp_path, "bin")
    torch.save({"module": model.tensors, "global_steps": 3, "lr_scheduler": None}, directory / "pytorch_model.bin")
    table = read(hf.open_source(directory), "decoder.embed_tokens.weight")
    assert torch.equal(table, model.tensors["model.decoder.embed_tokens.weight"])


def test_an_index_may_not_point_elsewhere(tmp_path: Path) -> None:
    directory = Model().write(tmp_path / "m", shards=2)
    outside = directory.rename(tmp_path / "n") / "model-00001-of-00002.safetensors"
    Model().write(directory, shards=2)
    index = directory / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(outside.name, f"../n/{outside.name}"))
    assert "../n/" in refusal(directory)


def test_a_tensor_the_index_promises_is_named(tmp_path: Path) -> None:
    directory = Model().write(tmp_path, shards=2)
    index = directory / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"][PART] = next(f for f in set(values["weight_map"].values()) if f != values["weight_map"][PART])
    index.write_text(json.dumps(values))
    assert f"lacks {PART}, which model.safetensors.index.json says it holds" in refusal(directory)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map_is_named(tmp_path: Path, text: str) -> None:
    directory = Model().write(tmp_path, shards=2)
    (directory / "model.safetensors.index.json").write_text(text)
    assert "must hold a weight_map" in refusal(directory)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("kind", ["bin", "legacy"])
def test_a_pickle_with_code_is_not_run(tmp_path: Path, kind: str) -> None:
    model = Model()
    model.tensors["payload"] = Payload(tmp_path / "ran")  # type: ignore[assignment]
    text = refusal(model.write(tmp_path / "m", kind))
    assert "posix.mkdir" in text and "can run code" in text
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    directory = Model().write(tmp_path / "m", "bin")
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    assert "pytorch_model.bin" in refusal(directory)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("values", [[torch.zeros(2)], {"a": 3}, torch.zeros(3)])
def test_a_bin_file_must_hold_named_tensors(tmp_path: Path, values: Any) -> None:
    directory = Model().write(tmp_path, "bin")
    torch.save(values, directory / "pytorch_model.bin")
    assert "must hold a dictionary of tensors" in refusal(directory)


def test_a_recompressed_bin_file_is_named(tmp_path: Path) -> None:
    directory = Model().write(tmp_path, "bin")
    path = directory / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert "was compressed after torch wrote it" in refusal(directory)


def test_a_header_that_lies_about_its_length_is_named(tmp_path: Path) -> None:
    directory = Model().write(tmp_path)
    path = directory / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])
    assert "model.safetensors is truncated or not safetensors" in refusal(directory)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model_type", "llama", "model_type 'opt', found 'llama'"),
        ("model_type", None, "model_type 'opt', found None"),
        ("activation_function", "silu", "activation_function = 'silu': only relu and gelu can be converted"),
        ("activation_function", 3, "activation_function = 3: only relu and gelu"),
        ("enable_bias", "no", "enable_bias of type bool, found 'no'"),
        ("enable_bias", False, "unexpected: model.decoder.layers.0."),
        ("architectures", ["OPTForSequenceClassification"], "whose head predicts classes; give an OPTForCausalLM"),
        ("architectures", ["OPTForQuestionAnswering"], "describes an OPTForQuestionAnswering"),
        ("model_type", "blip-2", "has model_type 'blip-2'; give --model_type blip2"),
        ("quantization_config", {"bits": 4}, "quantized already"),
        ("vocab_size", None, "vocab_size, an integer of at least 1, found None"),
        ("hidden_size", "16", "hidden_size, an integer of at least 1, found '16'"),
        ("ffn_dim", 0, "ffn_dim, an integer of at least 1, found 0"),
        ("num_hidden_layers", True, "num_hidden_layers, an integer of at least 1, found True"),
        ("num_hidden_layers", 10**9, "num_hidden_layers, an integer of at most 1000, found 1000000000"),
        ("max_position_embeddings", 12.0, "max_position_embeddings, an integer of at least 1, found 12.0"),
        ("word_embed_proj_dim", -1, "word_embed_proj_dim, an integer of at least 1, found -1"),
        ("num_attention_heads", 3, "16 cannot be divided into 3 equal parts"),
        ("do_layer_norm_before", "yes", "do_layer_norm_before of type bool, found 'yes'"),
        ("eos_token_id", "2", r"eos_token_id of type int, found '2'"),
        ("eos_token_id", [2, "3"], r"eos_token_id, an integer, several or null, found [2, '3']"),
        ("eos_token_id", [2, True], r"eos_token_id, an integer, several or null, found [2, True]"),
    ],
)
def test_a_config_that_is_not_this_opt_is_named(tmp_path: Path, key: str, value: Any, says: str) -> None:
    text = refusal(with_config(tmp_path, **{key: value}))
    assert says in text and str(tmp_path / "m") in text


def test_absent_keys_have_transformers_defaults(tmp_path: Path) -> None:
    model = Model()
    for key in ("word_embed_proj_dim", "bos_token_id", "eos_token_id", "pad_token_id", "do_layer_norm_before"):
        del model.config[key]
    config = hf.open_source(model.write(tmp_path)).config
    assert (config.word_embed_proj_dim, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (16, 2, 2, 1)
    assert (config.do_layer_norm_before, config.remove_final_layer_norm, config.tie_word_embeddings) == (
        True, False, True,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["bin", "legacy"])
def test_a_modules_state_dict_with_a_shared_table_is_read(tmp_path: Path, kind: str) -> None:
    """Save as `torch.save(model.state_dict())` does: an ordered dictionary with metadata, and a tied head."""
    model = Model()
    module = torch.nn.ModuleDict({"embed": torch.nn.Embedding(48, 16), "head": torch.nn.Linear(16, 48, bias=False)})
    table = module["embed"].get_parameter("weight")
    module["head"].register_parameter("weight", table)
    state = module.state_dict()
    for name in list(state):
        tied = "lm_head.weight" if name.startswith("head") else "model.decoder.embed_tokens.weight"
        state[tied] = state.pop(name)
    state.update({name: tensor for name, tensor in model.tensors.items() if "embed_tokens" not in name})
    assert hasattr(state, "_metadata")
    directory = model.write(tmp_path, kind)
    save(state, directory / "pytorch_model.bin", kind)
    source = hf.open_source(directory)
    assert torch.equal(read(source, "lm_head.weight"), table)
    assert torch.equal(read(source, "decoder.embed_tokens.weight"), table)


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        (2, None, (2, None)),
        ([2, 5], None, (2, (2, 5))),
        ([5, 5, 99], None, (5, None)),  # 99 is beyond the vocabulary, so that it never occurs
        (None, None, (2, ())),
        ([], None, (2, ())),
        (2, {"eos_token_id": [2, 5]}, (2, (2, 5))),
        (2, {"eos_token_id": 5}, (2, (5,))),
        (2, {"eos_token_id": None}, (2, ())),
        (2, {"eos_token_id": [2, -1]}, (2, None)),
        ([2, 5], {"eos_token_id": 2}, (2, None)),
        (5, {"pad_token_id": 1}, (5, None)),  # silence is no statement
    ],
)
def test_end_tokens_are_those_that_transformers_generates_with(
    tmp_path: Path, config: Any, generation: dict[str, Any] | None, ids: tuple[int, tuple[int, ...] | None]
) -> None:
    directory = with_config(tmp_path, eos_token_id=config)
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    source = hf.open_source(directory)
    assert (source.config.eos_token_id, source.config.end_token_ids) == ids
    named = {None: (), (): ("outputs have no end token, only a length",)}
    expected = named.get(ids[1], (f"outputs end at token ids {' '.join(map(str, ids[1] or ()))}",))
    assert source.notes == expected


@pytest.mark.parametrize("found", ["2", [2, "5"], 2.0, True, {"id": 2}])
def test_end_tokens_of_another_type_are_named(tmp_path: Path, found: Any) -> None:
    directory = with_config(tmp_path)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": found}))
    text = refusal(directory)
    assert "generation_config.json must have eos_token_id, an integer, several or null, found " in text
