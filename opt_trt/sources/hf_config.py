"""Turn a Hugging Face `config.json` into an `OptConfig` and back; refuse configurations that are not of an OPT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from opt_trt.errors import UserError, divide_exactly, spelled
from opt_trt.host.json_file import read_json
from opt_trt.model.config import ACTIVATIONS, MAX_LAYERS
from opt_trt.sources.opt import OptConfig

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "max_position_embeddings")
SWITCHES = {  # key: (field, default)
    "do_layer_norm_before": ("do_layer_norm_before", True),
    "_remove_final_layer_norm": ("remove_final_layer_norm", False),
    "tie_word_embeddings": ("tie_word_embeddings", True),
    "enable_bias": ("has_biases", True),
    "layer_norm_elementwise_affine": ("has_norm_weights", True),
}
GENERATION_CONFIG = "generation_config.json"
END = "eos_token_id"
TOKENS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
OTHER_HEADS = {"OPTForSequenceClassification": "classes", "OPTForQuestionAnswering": "the positions of answers"}


def read_hf_config(path: Path) -> OptConfig:
    """Read the configuration in `path`; `UserError` for other model types, bad keys and unknown variants of OPT.

    The file beside it that says how to generate decides which tokens end an output, as in transformers.
    """
    values = read_json(path)
    found = values.get("model_type")
    if found == "blip-2":
        advice = f"give {spelled('model_type')} blip2 to convert its language model"
        raise UserError(f"{path} has model_type 'blip-2'; {advice}")
    if found != "opt":
        raise UserError(f"{path} must have model_type 'opt', found {found!r}; give the directory of an OPT model")
    return ending_as_generated(opt_config(values, str(path)), path.parent)


def ending_as_generated(config: OptConfig, directory: Path) -> OptConfig:
    """Return the configuration with the end tokens of `generation_config.json`, if that file names any or none."""
    path = directory / GENERATION_CONFIG
    values = read_json(path) if path.is_file() else {}
    return _ending_at(config, values[END], str(path)) if END in values else config


def opt_config(values: dict[str, Any], where: str) -> OptConfig:
    """Return the configuration in the `values` of an OPT; `where` names them in errors."""
    _refuse_variants(values, where)
    sizes: dict[str, Any] = {key: _size(values, key, where) for key in SIZES}
    if (layers := sizes["num_hidden_layers"]) > MAX_LAYERS:
        raise UserError(
            f"{where} must have num_hidden_layers, an integer of at most {MAX_LAYERS}, found {layers}; "
            "fetch the file again"
        )
    divide_exactly(sizes["hidden_size"], sizes["num_attention_heads"], f"{where}: hidden_size over num_attention_heads")
    switches = {field: _typed(values, key, default, where) for key, (field, default) in SWITCHES.items()}
    end = values.get(END)
    first = next(iter(_within(end, sizes["vocab_size"])), None) if isinstance(end, list) else end
    tokens = {key: _typed(values | {END: first}, key, default, where) for key, default in TOKENS.items()}
    activation = _typed(values, "activation_function", ACTIVATIONS[0], where)
    width = _size({"word_embed_proj_dim": sizes["hidden_size"]} | _given(values), "word_embed_proj_dim", where)
    config = OptConfig(word_embed_proj_dim=width, hidden_act=activation, **sizes, **switches, **tokens)
    return _ending_at(config, end, where) if END in values else config


def _ending_at(config: OptConfig, end: Any, where: str) -> OptConfig:
    """Return the configuration with the end tokens that a file states; those beyond the vocabulary never occur."""
    ids = end if isinstance(end, list) else [] if end is None else [end]
    if not all(type(token_id) is int for token_id in ids):
        raise UserError(f"{where} must have {END}, an integer, several or null, found {end!r}; correct it")
    ends = tuple(dict.fromkeys(_within(ids, config.vocab_size)))
    return replace(config, end_token_ids=None if ends == (config.eos_token_id,) else ends)


def _within(ids: list[Any], vocab_size: int) -> list[int]:
    return [token_id for token_id in ids if type(token_id) is int and 0 <= token_id < vocab_size]


def _refuse_variants(values: dict[str, Any], where: str) -> None:
    """Refuse other heads, quantized weights and unknown activation functions."""
    for name, predicts in OTHER_HEADS.items():
        if values.get("architectures") == [name]:
            raise UserError(f"{where} describes an {name}, whose head predicts {predicts}; give an OPTForCausalLM")
    if values.get("quantization_config") is not None:
        raise UserError(
            f"{where} has quantization_config: weights that are quantized already cannot be converted; give plain ones"
        )
    activation = values.get("activation_function")
    if activation not in (None, *ACTIVATIONS):
        raise UserError(
            f"{where} has activation_function = {activation!r}: only {' and '.join(ACTIVATIONS)} can be converted; "
            "give an OPT or Galactica model"
        )


def hf_config_values(config: OptConfig) -> dict[str, Any]:
    """Return the keys of a `config.json` that `read_hf_config` reads as `config`."""
    fields = {key: key for key in (*SIZES, "word_embed_proj_dim", *TOKENS)}
    fields |= {key: field for key, (field, _) in SWITCHES.items()} | {"activation_function": "hidden_act"}
    ends = {} if config.end_token_ids is None else {END: list(config.end_token_ids) or None}
    return {"model_type": "opt"} | {key: getattr(config, field) for key, field in fields.items()} | ends


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _size(values: dict[str, Any], key: str, where: str) -> int:
    value = values.get(key)
    if type(value) is not int or value < 1:
        raise UserError(f"{where} must have {key}, an integer of at least 1, found {value!r}; fetch the file again")
    return value


def _typed(values: dict[str, Any], key: str, default: Any, where: str) -> Any:
    value = default if values.get(key) is None else values[key]
    if type(value) is not type(default):
        kind = type(default).__name__
        raise UserError(f"{where} must have {key} of type {kind}, found {value!r}; correct it and convert again")
    return value
