"""Read a checkpoint as a release does, by its facts: required and known keys; names, shapes and dtypes of tensors."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.trtllm._facts import Facts

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
Header = dict[str, tuple[str, tuple[int, ...]]]  # dtype code and shape by name


def read_pretrained(facts: Facts, path: Path) -> dict[str, Any]:
    """Do what `PretrainedConfig.from_json_file` does."""
    return read_values(facts, json.loads(path.read_text()))


def read_values(facts: Facts, values: dict[str, Any]) -> dict[str, Any]:
    """Do what `PretrainedConfig.from_dict` does: require some keys, add defaults of others, keep unknown keys."""
    known = facts["pretrained_config"] | facts["opt"]
    for key, fact in known.items():
        if fact.get("required") and key not in values:
            raise KeyError(key)
    config = {key: fact.get("default") for key, fact in known.items()} | values
    for key in ("quantization", "mapping"):
        config[key] = _keyword_arguments(facts, key, values.get(key) or {})
    derived = {
        "intermediate_size": 4 * config["hidden_size"],
        "num_key_value_heads": config["num_attention_heads"],
        "head_size": config["hidden_size"] // config["num_attention_heads"],
    }
    return config | {key: value for key, value in derived.items() if config[key] is None}


def _keyword_arguments(facts: Facts, section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with defaults; an unknown key is an error, because keys become keyword arguments of a class."""
    for key in values:
        if key not in facts[section]:
            raise TypeError(f"{facts['refusals'][f'{section}_key']['text']}'{key}'")
    return {key: fact["default"] for key, fact in facts[section].items()} | values


def check_rank(facts: Facts, model: dict[str, Any], directory: Path, rank: int) -> Iterator[str]:
    """Refuse a rank's tensors as the release does; yield its warnings."""
    path = directory / facts["files"]["weights"]["name"].format(rank=rank)
    if not path.is_file():
        raise AssertionError(facts["refusals"]["rank_missing"]["text"])
    yield from compare(facts, read_header(path), expected(facts, model, packed=is_packed(facts, model, path)))


def compare(facts: Facts, found: Header, wanted: Header) -> Iterator[str]:
    """Raise what is wrong with a rank's tensors; yield it where the release only warns."""
    refusals = facts["refusals"]
    if missing := wanted.keys() - found.keys():
        raise RuntimeError(f"{refusals['tensor_missing']['text']}{missing}")
    if extra := found.keys() - wanted.keys():
        yield f"{refusals['tensor_extra']['text']}{extra}"
    for name, (dtype, shape) in wanted.items():
        if found[name][1] != shape:
            text = f"{refusals['tensor_shape']['text']}Updated: {found[name][1]}, original: {shape}'"
            raise RuntimeError(f"{text} for parameter '{name}'")
        if found[name][0] != dtype:
            raise RuntimeError(f"{refusals['tensor_dtype']['text']}{dtype} but set to {found[name][0]}")


def expected(facts: Facts, model: dict[str, Any], packed: bool) -> Header:
    """Return dtypes and shapes of a rank's tensors by name. Quantized ones are packed for kernels or plain matrices."""
    algorithm = model["quantization"]["quant_algo"]
    multiple = facts["linears"]["weight_only"]["multiple"]
    header: Header = {}
    for pattern, styles in facts["tensors"].items():
        quantized = bool(algorithm) and algorithm in styles
        dims = styles.get(algorithm if quantized and packed else "plain")
        if dims is None or (".ln_f." in pattern and not model["do_layer_norm_before"]):
            continue
        dims = _embedding(facts, model, pattern) or dims
        for name in _names(pattern, model["num_hidden_layers"]):
            shape = tuple(_size(dim, model) for dim in dims)
            if quantized and len(shape) == 2:
                bits = facts["quant_algos"][algorithm]["bits"]
                full = (shape[0], shape[1] * 8 // bits) if packed else shape
                shape = _rounded(full, multiple, bits if packed else 8)
            integers = quantized and packed and len(shape) == 2
            header[name] = (CODES[facts["linears"]["weight_only"]["dtype"] if integers else model["dtype"]], shape)
    return header


def _rounded(shape: tuple[int, ...], multiple: int, bits: int) -> tuple[int, ...]:
    """Return the shape of a weight-only linear, whose sides are both rounded up."""
    rows, columns = (math.ceil(n / multiple) * multiple for n in shape)
    return rows, columns * bits // 8


def _embedding(facts: Facts, model: dict[str, Any], pattern: str) -> list[str] | None:
    sharded = facts["parallel_embedding"].get(pattern) if model["use_parallel_embedding"] else None
    return sharded[str(model["embedding_sharding_dim"])] if sharded else None


def _names(pattern: str, layers: int) -> list[str]:
    return [pattern.replace("*", str(i)) for i in range(layers)] if "*" in pattern else [pattern]


def _size(dim: str, model: dict[str, Any]) -> int:
    """Compute a size such as `3*hidden/tp`: a product of sizes, divided by others."""
    tp = model["mapping"]["tp_size"]
    sizes = {
        "hidden": model["hidden_size"], "vocab": model["vocab_size"], "ffn": model["intermediate_size"],
        "positions": model["max_position_embeddings"], "tp": tp,
        "padded_vocab": math.ceil(model["vocab_size"] / tp) * tp,
        "padded_positions": math.ceil(model["max_position_embeddings"] / tp) * tp,
    }  # fmt: skip
    product, *divisors = dim.split("/")
    size = math.prod(sizes.get(factor) or int(factor) for factor in product.split("*"))
    for divisor in divisors:
        size //= sizes.get(divisor) or int(divisor)
    return size


def is_packed(facts: Facts, model: dict[str, Any], path: Path) -> bool:
    """Return whether integers are stored; the reader quantizes other weights itself."""
    dtype = CODES[facts["linears"]["weight_only"]["dtype"]]
    return bool(model["quantization"]["quant_algo"]) and any(code == dtype for code, _ in read_header(path).values())


def read_header(path: Path) -> Header:
    """Read dtype and shape of every tensor of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    return {n: (e["dtype"], tuple(e["shape"])) for n, e in entries.items() if n != "__metadata__"}
