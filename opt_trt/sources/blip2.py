"""Open the OPT inside a Hugging Face BLIP-2; the vision model and the layers that connect them are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from opt_trt.errors import UserError, spelled
from opt_trt.host.json_file import read_json
from opt_trt.sources.hf import list_weights, refuse_pointer
from opt_trt.sources.hf_config import ending_as_generated, opt_config
from opt_trt.sources.listed import ListedSource, listed_source
from opt_trt.sources.opt import OptConfig

LANGUAGE_MODEL = "language_model."
DEFAULTS = {  # the defaults of transformers' OPTConfig, because a text_config may leave these keys out
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
}


def open_source(directory: Path) -> ListedSource:
    """Open the directory; a note lists the parts left out. `UserError` for other models and for a T5 inside."""
    path = directory / "config.json"
    refuse_pointer(path)
    config = _config(path)
    entries = list_weights(directory)
    own = [entry for entry in entries if entry.key.startswith(LANGUAGE_MODEL)]
    others = sorted({entry.key.partition(".")[0] for entry in entries} - {LANGUAGE_MODEL[:-1]})
    named = ((entry.key.removeprefix(LANGUAGE_MODEL).removeprefix("model."), entry) for entry in own)
    source = listed_source(config, named, directory)
    note = f"{directory}: only the language model is converted; {', '.join(others)} are left out"
    return replace(source, notes=(note,)) if others else source


def _config(path: Path) -> OptConfig:
    values: dict[str, Any] = read_json(path)
    found = values.get("model_type")
    if found != "blip-2":
        option = spelled("model_type")
        advice = f"leave {option} out to convert an OPT" if found == "opt" else "give the directory of a BLIP-2"
        raise UserError(f"{path} must have model_type 'blip-2' for {option} blip2, found {found!r}; {advice}")
    text = values.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    if not isinstance(text, dict) or inner != "opt":
        raise UserError(
            f"{path} must have a text_config with model_type 'opt', found {inner!r}; only a BLIP-2 built on OPT "
            "(blip2-opt-2.7b, blip2-opt-6.7b) can be converted"
        )
    return ending_as_generated(opt_config(DEFAULTS | text, f"{path}: text_config"), path.parent)
