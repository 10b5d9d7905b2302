"""The hyper-parameters of a metaseq checkpoint, from its shapes, its training and a `config.json` beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opt_trt.errors import UserError, divide_exactly
from opt_trt.sources.metaseq.sizes import PUBLISHED
from opt_trt.sources.opt import EMBEDDING, OFFSET_ROWS, POSITIONS, OptConfig

FINAL_NORM = "decoder.final_layer_norm.weight"
FFN = "decoder.layers.0.fc1.weight"
SIZES = (
    "vocab_size", "hidden_size", "word_embed_proj_dim", "num_hidden_layers", "num_attention_heads", "ffn_dim",
    "max_position_embeddings",
)  # fmt: skip
TOKENS: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}  # the same in every OPT


@dataclass(frozen=True)
class Statement:
    """The hyper-parameters that one place states, some or all, by the names of `OptConfig`."""

    where: str
    values: Mapping[str, Any]


def agreed(statements: Iterable[Statement]) -> dict[str, Any]:
    """Return all sizes that were stated; `UserError` if two statements differ."""
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for statement in statements:
        for key, value in statement.values.items():
            if key in SIZES and found.setdefault(key, value) != value:
                raise UserError(
                    f"{key} is {found[key]} in {origin[key]} but {value} in {statement.where}: they are of two models; "
                    "fetch both again"
                )
            origin.setdefault(key, statement.where)
    return found


def metaseq_config(shapes: Mapping[str, tuple[int, ...]], stated: list[Statement], directory: Path) -> OptConfig:
    """Return the configuration of a checkpoint without `config.json`, from its joined `shapes` and its statements."""
    sizes = agreed([state_sizes(shapes, directory), *stated])
    key = sizes["hidden_size"], sizes["num_hidden_layers"]
    known = next((size for size in PUBLISHED if (size.hidden_size, size.num_hidden_layers) == key), None)
    if "num_attention_heads" not in sizes:
        if not known:
            raise _unknown("the number of attention heads", directory, key)
        sizes["num_attention_heads"] = known.num_attention_heads
    if sizes["num_attention_heads"] < 1:
        raise UserError(f"{directory}: num_attention_heads must be at least 1, found 0; fetch it again")
    divide_exactly(key[0], sizes["num_attention_heads"], f"{directory}: hidden_size over attention heads")
    pre_norm, removed = True, False
    if FINAL_NORM not in shapes and known:
        pre_norm = known.do_layer_norm_before  # if True, the missing layer norm is reported later
    elif FINAL_NORM not in shapes:
        said = [s.values["do_layer_norm_before"] for s in stated if "do_layer_norm_before" in s.values]
        if not said:
            raise _unknown("whether layer norms come before or after", directory, key)
        pre_norm = removed = bool(said[0])
    return OptConfig(
        **sizes, do_layer_norm_before=pre_norm, remove_final_layer_norm=removed, tie_word_embeddings=True, **TOKENS
    )


def state_sizes(shapes: Mapping[str, tuple[int, ...]], directory: Path) -> Statement:
    """Derive sizes from shapes; `UserError` names the tensors that are missing for that."""
    ranks = {EMBEDDING: 2, POSITIONS: 2, FFN: 2}
    if bad := [name for name, rank in ranks.items() if len(shapes.get(name, ())) != rank]:
        raise UserError(
            f"{directory} does not hold a whole OPT: it lacks the matrix {', '.join(bad)}; fetch its files again"
        )
    (vocab, width), (rows, hidden) = shapes[EMBEDDING], shapes[POSITIONS]
    layers = {name.split(".")[2] for name in shapes if name.startswith("decoder.layers.")}
    values = dict(zip(SIZES, (vocab, hidden, width, len(layers)), strict=False))
    values |= {"ffn_dim": shapes[FFN][0], "max_position_embeddings": rows - OFFSET_ROWS}
    return Statement(f"the tensors in {directory}", values)


def _unknown(what: str, directory: Path, key: tuple[int, int]) -> UserError:
    return UserError(
        f"{directory} does not say {what}, and hidden_size {key[0]} with {key[1]} layers is no published OPT; put the "
        "config.json of its Hugging Face model beside the files"
    )
