"""Original checkpoints: one file per format, recognized by what is in the directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.sources import hf, metaseq
from opt_trt.sources.opt import Source

SOURCES: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Source]]] = {  # format: (recognizes, opens)
    "metaseq (.pt files)": (metaseq.recognizes, metaseq.open_source),
    "Hugging Face (config.json beside safetensors or .bin files)": (hf.recognizes, hf.open_source),
}


def open_source(model_dir: Path) -> Source:
    """Open an original checkpoint, whichever format it is in; `UserError` says what is wrong with it."""
    if not model_dir.is_dir():
        raise UserError(
            f"--model_dir {model_dir} is not a directory; give a local copy of the model, hubs are not read"
        )
    for recognizes, opens in SOURCES.values():
        if recognizes(model_dir):
            return opens(model_dir)
    raise UserError(f"--model_dir {model_dir} holds no checkpoint of a known format: {'; '.join(SOURCES)}")
