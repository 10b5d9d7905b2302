"""The error of each runner's logits, compared with transformers in float32 on the same weights.

All runners and the reference start from one Hugging Face directory, and compute the logits of the token that follows
each of a few prompts. The mean of a row is subtracted before the comparison: softmax ignores it, and log-probabilities,
which every engine can return, differ from logits by such a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from peers import PeerVariant
from peers.environment import PeerUnavailable
from peers.process import PeerProcess
from safetensors import safe_open
from turns import Load, Prompts

from opt_trt.backends.engine import WEIGHTS

PROMPTS = 4
EMBEDDING, ROWS = "model.decoder.embed_tokens.weight", 16
SEED = 2**32  # no turn has this seed, so these prompts are used only here
ORACLE = PeerVariant("transformers", "float32")


class LogitsRunner(Protocol):
    """A runner that returns logits."""

    def logits(self, prompts: Prompts) -> np.ndarray:
        """Return fp32 `[N, V]`, for the token that follows each prompt; a constant may be added to each row."""
        ...


@dataclass(frozen=True)
class Reference:
    """The prompts and their exact logits in fp32, `[N, V]`."""

    prompts: Prompts
    logits: np.ndarray

    def error(self, logits: np.ndarray) -> float:
        """Return the norm of the difference divided by the norm of the reference, over all rows."""
        difference, whole = centred(logits - self.logits), centred(self.logits)
        return float(np.linalg.norm(difference) / np.linalg.norm(whole))


def centred(logits: np.ndarray) -> np.ndarray:
    """Subtract the mean of each row, in fp64."""
    return logits - logits.mean(-1, keepdims=True, dtype=np.float64)


def is_of_other_weights(engine_dir: Path | None, hf: Path, absent: dict[str, str]) -> bool:
    """Return whether an engine was made of another model than `hf`; the embedding, which is never quantized, tells."""
    if engine_dir is None:
        return False
    with safe_open(engine_dir / WEIGHTS.format(rank=0), framework="pt") as file:
        found = file.get_slice("transformer.vocab_embedding.weight")[:ROWS]
    for path in hf.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if EMBEDDING in set(file.keys()) and torch.equal(file.get_slice(EMBEDDING)[:ROWS].to(found.dtype), found):
                return False
    absent["error"] = f"{engine_dir} is of other weights than {hf}"
    return True


def compute_reference(hf: Path, input_len: int, cache: Path, absent: dict[str, str]) -> Reference | None:
    """Compute the reference in a process that ends and so frees its memory.

    Return None if the model is too large for that, and put the reason into `absent`.
    """
    prompts = Load(PROMPTS, input_len, output_len=1).prompts(SEED)
    try:
        with closing(PeerProcess(ORACLE, hf, cache, cache / "reference.log")) as process:
            return Reference(prompts, process.logits(prompts))
    except PeerUnavailable as why:
        absent["error"] = f"{ORACLE.label} {why}"
        return None


def errors_of(
    runners: Mapping[str, LogitsRunner], reference: Reference | None, absent: dict[str, str]
) -> dict[str, float]:
    """Return the error of each runner; a runner that fails goes to `absent`. Without a reference, return no errors."""
    errors: dict[str, float] = {}
    if reference is None:
        return errors
    for name, runner in runners.items():
        try:
            errors[name] = reference.error(runner.logits(reference.prompts))
        except PeerUnavailable as why:
            absent[name] = str(why)
    return errors
