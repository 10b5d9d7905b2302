"""Original checkpoints. Each format has a file or a folder here, and is recognized by the files in the directory."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from opt_trt.errors import UserError, spelled
from opt_trt.sources import alpa, blip2, flagai, hf, metaseq
from opt_trt.sources.listed import ListedSource
from opt_trt.sources.lookalikes import beside_model, refuse_lookalike

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # facebook/opt-125m
SOURCES: dict[str, tuple[Callable[[Path], bool], Callable[[Path], ListedSource]]] = {  # format: (recognizes, opens)
    "metaseq (.pt files)": (metaseq.recognizes, metaseq.open_source),
    "FlagAI (pytorch_model_00.bin and its siblings)": (flagai.recognizes, flagai.open_source),
    "Alpa (one NumPy file per tensor)": (alpa.recognizes, alpa.open_source),
    "Hugging Face (config.json beside safetensors or .bin files)": (hf.recognizes, hf.open_source),
}


def recognize(directory: Path) -> Callable[[Path], ListedSource] | None:
    """Return the function that opens the checkpoint in a directory; None if its format is unknown."""
    return next((opens for recognizes, opens in SOURCES.values() if recognizes(directory)), None)


def how_to_fetch(name: Path) -> str:
    """Return the command that fetches a model, for the end of an error; nothing for what is no name on the hub."""
    return f": hf download {name} --local-dir {name.name}" if HUB_NAME.fullmatch(str(name)) else ""


def open_source(model_dir: Path, model_type: str = "opt") -> ListedSource:
    """Open an original checkpoint of any known format; `UserError` says what is wrong with it.

    With `model_type` blip2, open the OPT inside a BLIP-2.
    """
    if not model_dir.is_dir():
        raise UserError(
            f"{spelled('model_dir')} {model_dir} is not a directory; give a local copy of the model, hubs are not read"
            + how_to_fetch(model_dir)
        )
    refuse_lookalike(model_dir)
    opens = blip2.open_source if model_type == "blip2" else recognize(model_dir)
    if opens is not None:
        source = opens(model_dir)
        return replace(source, notes=(*source.notes, *beside_model(model_dir)))
    raise UserError(f"{spelled('model_dir')} {model_dir} holds no checkpoint of a known format: {'; '.join(SOURCES)}")
