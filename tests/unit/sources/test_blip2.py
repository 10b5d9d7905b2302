"""`--model_type blip2` converts the OPT inside a BLIP-2, and no other part of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.sources import open_source
from tests.unit._models import Model

TEXT = {
    "vocab_size": 48, "hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "ffn_dim": 40, "max_position_embeddings": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a BLIP-2 with transformers, and its language model alone in another directory."""
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config=tiny | {"image_size": 4, "patch_size": 2},
        qformer_config=tiny | {"vocab_size": 10, "encoder_hidden_size": 8, "max_position_embeddings": 4},
        text_config=OPTConfig(**TEXT).to_dict(),
        num_query_tokens=2,
    )
    torch.manual_seed(3)
    model = Blip2ForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    base = tmp_path_factory.mktemp("blip2")
    model.save_pretrained(base / "whole")
    model.language_model.save_pretrained(base / "alone")
    return base


def files(model_dir: Path, out: Path, **flags: Any) -> dict[str, bytes]:
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(out), **flags))
    return {path.name: path.read_bytes() for path in out.iterdir()}


def edited(source: Path, directory: Path, **values: Any) -> Path:
    """Write a directory with the configuration of another one, and some changes."""
    directory.mkdir()
    config = json.loads((source / "config.json").read_text()) | values
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("flags", [{}, {"dtype": "float32", "tp_size": 2}])
def test_the_bytes_are_those_of_the_language_model_alone(blip2: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    whole = files(blip2 / "whole", tmp_path / "whole", model_type="blip2", **flags)
    assert whole == files(blip2 / "alone", tmp_path / "alone", **flags)
    assert json.loads(whole["config.json"])["architecture"] == "OPTForCausalLM"


def test_what_is_left_aside_is_said_in_one_line(
    blip2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files(blip2 / "whole", tmp_path / "out", model_type="blip2")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(
        "only the language model is converted; language_projection, qformer, query_tokens, vision_model are left out"
    )
    assert second.startswith("checkpoint ")
    files(blip2 / "whole", tmp_path / "out", model_type="blip2", log_level="warning")
    assert capsys.readouterr() == ("", "")


def test_a_tied_head_and_integer_buffers_of_older_exports_are_accepted(blip2: Path, tmp_path: Path) -> None:
    old = edited(blip2 / "whole", tmp_path / "old")
    tensors = load_file(blip2 / "whole" / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.decoder.embed_tokens.weight"].clone()
    tensors["qformer.embeddings.position_ids"] = torch.arange(4)
    save_file(tensors, old / "model.safetensors")
    found = files(old, tmp_path / "found", model_type="blip2")
    assert found == files(blip2 / "alone", tmp_path / "expected")


def test_what_the_inner_configuration_leaves_out_is_transformers_default(blip2: Path, tmp_path: Path) -> None:
    """Some exports keep only those values of a text_config that differ from OPTConfig()."""
    directory = edited(blip2 / "whole", tmp_path / "m", text_config={"model_type": "opt", "num_hidden_layers": 1})
    default = Model(vocab=50272, hidden=768, width=768, layers=1, ffn=3072, positions=2048)
    save_file({f"language_model.{n}": t for n, t in default.tensors.items()}, directory / "model.safetensors")
    config, expected = open_source(directory, "blip2").config, OPTConfig(num_hidden_layers=1)
    names = ("vocab_size", "hidden_size", "num_attention_heads", "ffn_dim", "max_position_embeddings", "eos_token_id")
    assert [getattr(config, name) for name in names] == [getattr(expected, name) for name in names]


def refusal(directory: Path, model_type: str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(directory, model_type)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_flag_and_the_directory_must_agree(blip2: Path, tmp_path: Path) -> None:
    assert "give --model_type blip2" in refusal(blip2 / "whole", "opt")
    assert "found 'opt'; leave --model_type out" in refusal(blip2 / "alone", "blip2")
    llama = edited(blip2 / "whole", tmp_path / "llama", model_type="llama")
    assert "found 'llama'; give the directory of a BLIP-2" in refusal(llama, "blip2")


@pytest.mark.parametrize(("text", "found"), [({"model_type": "t5"}, "'t5'"), (None, "None"), ("opt", "None")])
def test_a_blip2_without_an_opt_inside_is_named(blip2: Path, tmp_path: Path, text: Any, found: str) -> None:
    directory = edited(blip2 / "whole", tmp_path / "t5", text_config=text)
    says = f"text_config with model_type 'opt', found {found}; only a BLIP-2 built on OPT"
    assert says in refusal(directory, "blip2")


def test_a_blip2_without_its_language_model_is_named(blip2: Path, tmp_path: Path) -> None:
    directory = edited(blip2 / "whole", tmp_path / "m")
    save_file({"query_tokens": torch.zeros(1, 2, 8)}, directory / "model.safetensors")
    assert "missing: decoder.embed_tokens.weight" in refusal(directory, "blip2")


def test_the_end_tokens_of_the_whole_model_are_those_of_the_inner_one(blip2: Path, tmp_path: Path) -> None:
    directory = edited(blip2 / "whole", tmp_path / "m")
    shutil.copy(blip2 / "whole" / "model.safetensors", directory)
    (directory / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert open_source(directory, "blip2").config.end_token_ids == (9,)
