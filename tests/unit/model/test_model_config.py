"""A checkpoint's configuration is read as it was written, and an error names a damaged value."""

from __future__ import annotations

import pytest

from opt_trt.errors import UserError
from opt_trt.host.json_file import read_json
from opt_trt.model.config import ModelConfig

GOOD = {
    "architecture": "OPTForCausalLM", "dtype": "float16", "num_hidden_layers": 2, "num_attention_heads": 4,
    "hidden_size": 64, "vocab_size": 100, "max_position_embeddings": 32, "do_layer_norm_before": True,
}  # fmt: skip


def test_what_was_written_comes_back():
    config = ModelConfig.from_dict(GOOD, "here")
    assert ModelConfig.from_dict(config.to_dict(), "there") == config


def test_upstreams_missing_ffn_size_is_four_times_hidden():
    assert ModelConfig.from_dict(GOOD, "here").intermediate_size == 256


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_size": "64"}, r"here: hidden_size must be int, found '64'"),
        ({"hidden_size": True}, "hidden_size must be int, found True"),
        ({"num_attention_heads": 0}, "here: num_attention_heads must be at least 1, found 0"),
        ({"num_attention_heads": 5}, "64 cannot be divided into 5 equal parts"),
        ({"num_hidden_layers": 10**9}, "here: num_hidden_layers must be at most 1000, found 1000000000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 1"),
        ({"dtype": "int3"}, "dtype must be float32 or bfloat16 or float16, found 'int3'"),
        ({"mapping": {"tp_size": "2"}}, "tp_size must be int, found '2'"),
        ({"mapping": {"world_size": 4, "tp_size": 2}}, "world_size must be"),
        ({"quantization": "W8A16"}, "quantization must be"),
        ({"do_layer_norm_before": "false"}, "do_layer_norm_before must be bool, found 'false'"),
        ({"position_embedding_type": "rope"}, "position_embedding_type must be learned_absolute, found 'rope'"),
        ({"logits_dtype": "int3"}, "logits_dtype must be float32 or float16"),
        ({"eos_token_id": 100}, "eos_token_id must be in the vocabulary of 100, found 100"),
        ({"embedding_sharding_dim": 2}, "embedding_sharding_dim must be 0 or 1"),
        ({"vocab_size": None}, "here lacks vocab_size"),
        ({"mapping": [2]}, "mapping must be Mapping, found"),
    ],
)
def test_a_damaged_value_is_named(change, text):
    with pytest.raises(UserError, match=text):
        ModelConfig.from_dict(GOOD | change, "here")


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_key_is_named(name):
    with pytest.raises(UserError, match=f"here lacks {name}"):
        ModelConfig.from_dict({k: v for k, v in GOOD.items() if k != name}, "here")


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe", b"null", b'{"a":' * 99999, b'{"a":' + b"1" * 9999 + b"}"]
)
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"expected .*none\.json, found nothing"):
        read_json(tmp_path / "none.json")
