"""A Hugging Face `config.json` and the `OptConfig` it stands for; what is not this OPT is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opt_trt.config.json_file import read_json
from opt_trt.errors import UserError, divide_exactly
from opt_trt.sources.opt import OptConfig

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "max_position_embeddings")
SWITCHES = {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "tie_word_embeddings": True}
TOKENS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
VARIANTS = {  # key: (the value that is supported and the default, what another one would be)
    "activation_function": ("relu", "an activation other than relu"),
    "enable_bias": (True, "linears without biases"),
    "layer_norm_elementwise_affine": (True, "layer norms without weights"),
    "quantization_config": (None, "weights that are quantized already"),
}


def read_hf_config(path: Path) -> OptConfig:
    """The configuration in `path`; `UserError` for another model type, a missing or mistyped key, a variant of OPT."""
    values = read_json(path)
    found = values.get("model_type")
    if found != "opt":
        raise UserError(f"{path} must have model_type 'opt', found {found!r}; give the directory of an OPT model")
    for key, (supported, meaning) in VARIANTS.items():
        if values.get(key, supported) != supported:
            raise UserError(
                f"{path} has {key} = {values[key]!r}: {meaning} cannot be converted; only {supported!r} can"
            )
    sizes: dict[str, Any] = {key: _size(values, key, path) for key in SIZES}
    divide_exactly(sizes["hidden_size"], sizes["num_attention_heads"], f"{path}: hidden_size over num_attention_heads")
    switches = {key.lstrip("_"): _typed(values, key, default, path) for key, default in SWITCHES.items()}
    tokens = {key: _typed(values, key, default, path) for key, default in TOKENS.items()}
    width = _size({"word_embed_proj_dim": sizes["hidden_size"]} | _given(values), "word_embed_proj_dim", path)
    return OptConfig(word_embed_proj_dim=width, **sizes, **switches, **tokens)


def hf_config_values(config: OptConfig) -> dict[str, Any]:
    """The keys of a `config.json` that `read_hf_config` reads as `config`."""
    keys = (*SIZES, "word_embed_proj_dim", *SWITCHES, *TOKENS)
    variants = {key: supported for key, (supported, _) in VARIANTS.items() if supported is not None}
    return {"model_type": "opt"} | {key: getattr(config, key.lstrip("_")) for key in keys} | variants


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _size(values: dict[str, Any], key: str, path: Path) -> int:
    value = values.get(key)
    if type(value) is not int or value < 1:
        raise UserError(f"{path} must have {key}, an integer of at least 1, found {value!r}; fetch the file again")
    return value


def _typed(values: dict[str, Any], key: str, default: Any, path: Path) -> Any:
    value = default if values.get(key) is None else values[key]
    if type(value) is not type(default):
        kind = type(default).__name__
        raise UserError(f"{path} must have {key} of type {kind}, found {value!r}; correct it and convert again")
    return value
