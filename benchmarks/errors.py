"""How far the logits of each runner are from those of float32 on the same weights: what rounding does to a prompt.

The reference is transformers in float32, of the Hugging Face directory everybody starts from; asked for is the token
that follows each of a few prompts. A row of logits counts less its mean: softmax does not see that, and the
log-probabilities which every engine gives do not have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from peers import Choice
from peers.environment import PeerUnavailable
from peers.process import PeerProcess
from safetensors import safe_open
from turns import Load, Prompts

from opt_trt.backends.engine import WEIGHTS

PROMPTS = 4
EMBEDDING, ROWS = "model.decoder.embed_tokens.weight", 16
SEED = 2**32  # of no turn: nobody meets these prompts again
ORACLE = Choice("transformers", "float32")


class Speaker(Protocol):
    """Whoever can be asked for logits."""

    def logits(self, prompts: Prompts) -> np.ndarray:
        """Fp32 `[N, V]` of the token that follows each prompt, up to a number added to a row."""
        ...


@dataclass(frozen=True)
class Reference:
    """What was asked, and the right answer: fp32 `[N, V]`."""

    prompts: Prompts
    logits: np.ndarray

    def error(self, logits: np.ndarray) -> float:
        """The norm of the difference by that of the reference, of all rows together."""
        difference, whole = centred(logits - self.logits), centred(self.logits)
        return float(np.linalg.norm(difference) / np.linalg.norm(whole))


def centred(logits: np.ndarray) -> np.ndarray:
    """Each row less its mean, in fp64."""
    return logits - logits.mean(-1, keepdims=True, dtype=np.float64)


def is_of_other_weights(engine_dir: Path | None, hf: Path, absent: dict[str, str]) -> bool:
    """Whether an engine was made of another model than `hf`, by the head of the embedding, which nothing quantizes."""
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
    """By a process that ends, its memory with it; None if a model is too large for that, the reason in `absent`."""
    prompts = Load(PROMPTS, input_len, output_len=1).prompts(SEED)
    try:
        with closing(PeerProcess(ORACLE, hf, cache, cache / "reference.log")) as process:
            return Reference(prompts, process.logits(prompts))
    except PeerUnavailable as why:
        absent["error"] = f"{ORACLE.label} {why}"
        return None


def errors_of(runners: Mapping[str, Speaker], reference: Reference | None, absent: dict[str, str]) -> dict[str, float]:
    """The error of each, where there is a reference; those that end when they are asked join the absent."""
    errors: dict[str, float] = {}
    if reference is None:
        return errors
    for name, runner in runners.items():
        try:
            errors[name] = reference.error(runner.logits(reference.prompts))
        except PeerUnavailable as why:
            absent[name] = str(why)
    return errors
