"""A directory that holds something else than a model says what it holds and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opt_trt.describe.directories import list_directory
from opt_trt.errors import UserError
from opt_trt.sources import open_source
from opt_trt.sources.opt import EMBEDDING, HEAD, POSITIONS
from opt_trt.text.tokenizer import load_tokenizer
from tests.unit._models import FILES, Model, save

TRAINER = ("optimizer.pt", "scheduler.pt", "rng_state_0.pth")


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(directory)
    return str(caught.value)


def fill(directory: Path, *names: str) -> Path:
    """Put empty state dicts, or directories for names that end with a slash, into a directory."""
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            torch.save({}, path)
    return directory


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), "an adapter (adapter_config.json); merge it into its"),
        (("adapter_config.json", "adapter_model.bin", *TRAINER), "an adapter (adapter_config.json); merge it into"),
        (("pytorch_model_fsdp_0/", "scheduler.pt"), "the shards of FSDP (pytorch_model_fsdp_0); merge them"),
        (("pytorch_model_fsdp.bin", *TRAINER), "the shards of FSDP (pytorch_model_fsdp.bin); merge them"),
        (("__0_0.distcp",), "the shards of FSDP (__0_0.distcp)"),
        (("global_step1/", "zero_to_fp32.py"), "DeepSpeed's ZeRO (zero_to_fp32.py); run zero_to_fp32.py there"),
        (("global_step1/", "scheduler.pt"), "DeepSpeed's ZeRO (global_step1); run zero_to_fp32.py there"),
        (("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_x.pt"), "DeepSpeed's ZeRO (bf16_zero_pp_rank_0_x.pt)"),
        (("last.ckpt",), "a trainer's file with a model in it (last.ckpt); save its state dict as pytorch_model.bin"),
        (("optimizer.pt",), "the state of a trainer, not a model (optimizer.pt); give the directory with the model's"),
        (TRAINER, "the state of a trainer, not a model"),
        (("flax_model.msgpack",), "a model of Flax (flax_model.msgpack); give the model of"),
        (("opt.Q4_K_M.gguf",), "a model of llama.cpp (opt.Q4_K_M.gguf)"),
        (("gptq_model-4bit-128g.safetensors", "quantize_config.json"), "quantized already (quantize_config.json);"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_named(tmp_path: Path, names: tuple[str, ...], says: str, config: bool) -> None:
    directory = fill(tmp_path / "m", *names)
    if config:
        (directory / "config.json").write_text(json.dumps(Model().config))
    expected = f"{directory} holds {says}"
    assert expected in refusal(directory).replace("a checkpoint of ", "").replace("a model that is ", "")
    with pytest.raises(UserError) as described:
        list_directory(directory, None)
    assert str(described.value) == refusal(directory)


def test_a_whole_model_is_taken_and_an_adapter_beside_it_is_noted(tmp_path: Path) -> None:
    directory = fill(Model().write(tmp_path), *TRAINER)
    assert open_source(directory).notes == ()
    fill(directory, "adapter_config.json", "adapter_model.bin")
    assert "the adapter beside the model (adapter_config.json) is not applied" in open_source(directory).notes[0]


@pytest.mark.parametrize(
    "inner", ["checkpoint-500", "models--facebook--opt-125m/snapshots/27dc", "snapshots/27dc", "my model"]
)
def test_a_directory_around_a_model_names_the_model(tmp_path: Path, inner: str) -> None:
    Model().write(tmp_path / inner)
    assert f"give it: {tmp_path / inner}" in refusal(tmp_path)


def test_of_many_checkpoints_some_are_named_by_number(tmp_path: Path) -> None:
    for step in (1000, 500, 5, 80):
        Model().write(tmp_path / f"checkpoint-{step}")
    names = ", ".join(str(tmp_path / f"checkpoint-{step}") for step in (5, 80, 500))
    assert f"give one of them: {names} and 1 more" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["models--a--b/snapshots/1", "checkpoint-7"])
def test_a_directory_around_a_tokenizer_names_the_tokenizer(tmp_path: Path, kind: str) -> None:
    (tmp_path / kind).mkdir(parents=True)
    (tmp_path / kind / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=f"give it as --tokenizer_dir: {tmp_path / kind}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", ["config.json", "weights"])
def test_a_link_to_a_missing_blob_is_named(tmp_path: Path, shards: int, name: str) -> None:
    directory = Model().write(tmp_path, shards=shards)
    path = directory / name if name == "config.json" else sorted(directory.glob("*.safetensors"))[0]
    path.unlink()
    path.symlink_to("../../blobs/27dc")
    assert f"{path} links to a file that is missing; download it again" in refusal(directory)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module.{key}",
        lambda key: f"_forward_module.module.{key}",
        lambda key: f"_fsdp_wrapped_module.{key}".replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_names_of_wrappers_are_taken_off(tmp_path: Path, rename: Callable[[str], str], kind: str) -> None:
    model = Model()
    plain = open_source(model.write(tmp_path / "plain"))
    model.tensors = {rename(key): tensor for key, tensor in model.tensors.items()}
    directory = model.write(tmp_path / "m", kind)
    save(model.tensors, directory / FILES[kind].format(""), kind)
    source = open_source(directory)
    assert source.tensors.keys() == plain.tensors.keys()
    assert "taken off the names of tensors: " in source.notes[0]


def shaped(name: str, *shape: int) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model.tensors[f"model.{name}"] = torch.zeros(shape)

    return change


def renamed(before: str, after: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model.tensors = {key.replace(before, after): tensor for key, tensor in model.tensors.items()}

    return change


def all_empty(model: Model) -> None:
    model.tensors = {key: torch.zeros(0) for key in model.tensors}


def untied(model: Model) -> None:
    model.config["tie_word_embeddings"] = False


def with_tensor(key: str) -> Callable[[Model], None]:
    return lambda model: model.tensors.update({key: torch.zeros(4)})


LAYER = "model.decoder.layers.0.fc1"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (all_empty, "they are placeholders of DeepSpeed's ZeRO-3: run zero_to_fp32.py"),
        (shaped("decoder.layers.0.fc1.weight", 1), "they are placeholders of DeepSpeed's ZeRO-3"),
        (renamed("fc1.weight", "fc1.base_layer.weight"), "a LoRA adapter is in them: merge it first"),
        (with_tensor(f"{LAYER}.lora_A.default.weight"), "a LoRA adapter is in them: merge it first"),
        (with_tensor(f"{LAYER}.qweight"), "they are quantized already: give the plain model"),
        (with_tensor(f"{LAYER}.SCB"), "they are quantized already: give the plain model"),
        (with_tensor(f"{LAYER}.weight.quant_state.bitsandbytes__nf4"), "they are quantized already"),
        (shaped(EMBEDDING, 51, 16), "set vocab_size to 51 in config.json"),
        (shaped(EMBEDDING, 40, 16), "set vocab_size to 40 in config.json"),
        (shaped(POSITIONS, 34, 16), "set max_position_embeddings to 32 in config.json"),
        (untied, f"missing: {HEAD}; fetch it again, or set tie_word_embeddings to true"),
        (renamed("model.decoder", "net.model.decoder"), "take 'net.model.' off the names"),
        (with_tensor("other"), "fetch them again"),
    ],
)
def test_the_reason_for_other_tensors_is_named(tmp_path: Path, change: Any, says: str) -> None:
    model = Model()
    change(model)
    directory = model.write(tmp_path)
    save(model.tensors, directory / "model.safetensors", "safetensors")
    assert says in refusal(directory)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": "OPTForCausalLM", "mapping": {}}, "a checkpoint that is converted already; build an"),
        ({"build_config": {}, "pretrained_config": {}}, "an engine; give the original model"),
    ],
)  # fmt: skip
def test_a_checkpoint_and_an_engine_are_named(tmp_path: Path, config: Any, says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"{tmp_path / 'config.json'} describes {says}" in refusal(tmp_path)
