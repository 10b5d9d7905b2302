"""Engines of this project as runners of a benchmark; its own commands build them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from costs import Computes
from models import SHAPES
from safetensors import safe_open
from turns import Prompts

from opt_trt.backends import open_engine
from opt_trt.backends.engine import WEIGHTS, EngineConfig, read_engine_config
from opt_trt.config.sampling import Sampling
from opt_trt.errors import UserError
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit

ROOT = Path(__file__).parents[1]
CACHE_TOKENS = 2**16  # capacity of the KV cache, more than any load here needs
PRECISIONS = {  # the flags of the conversion
    "float32": ("--dtype", "float32"),
    "float16": ("--dtype", "float16"),
    "bfloat16": ("--dtype", "bfloat16"),
    "int8": ("--dtype", "float16", "--use_weight_only"),
    "int4": ("--dtype", "float16", "--use_weight_only", "--weight_only_precision", "int4"),
    "int8-bfloat16": ("--dtype", "bfloat16", "--use_weight_only"),
    "int4-bfloat16": ("--dtype", "bfloat16", "--use_weight_only", "--weight_only_precision", "int4"),
}
ALGORITHMS = {"W8A16": "int8", "W4A16": "int4"}
ACTIVATIONS = {  # the activations of a layer's products, by the first letters of its tactic
    "fixed16": "16-bit fixed point", "words": "16-bit fixed point", "fixed8": "8-bit fixed point", "pairs": "bfloat16",
}  # fmt: skip
STORED = {
    torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16", torch.int8: "int8",
    torch.uint8: "int4",
}  # fmt: skip


def make_engine(hf: Path, precision: str, work: Path, build_flags: Sequence[str] = ()) -> Path:
    """Convert and build under `work`, with the commands that a user would type."""
    checkpoint, engine = work / "checkpoint", work / "engine"
    command("convert_checkpoint.py", "--model_dir", hf, "--output_dir", checkpoint, *PRECISIONS[precision])
    timings = "--output_timing_cache", work / "model.cache"
    command("build.py", "--checkpoint_dir", checkpoint, "--output_dir", engine, *timings, *build_flags)
    return engine


def command(script: str, *flags: object) -> None:
    """Run one of the project's commands; `UserError` with its error if it fails."""
    line = [sys.executable, str(ROOT / script), *map(str, flags), "--log_level", "warning"]
    done = subprocess.run(line, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{script} failed: {done.stderr.strip()}")


class EngineRunner:
    """An engine of ours that takes turns with peers."""

    def __init__(self, engine_dir: Path) -> None:
        self.computes = computes(engine_dir)
        self._session = open_engine(engine_dir, KvCacheLimit(max_tokens=CACHE_TOKENS))

    def seconds(self, prompts: Prompts, output_len: int) -> float:
        """Generate, and return the seconds, as `TimedRunner.seconds` says."""
        requests = [Request(tuple(row), output_len) for row in prompts]
        started = time.perf_counter()
        generate(self._session, requests)
        return time.perf_counter() - started

    def logits(self, prompts: Prompts) -> np.ndarray:
        """Return logits as `LogitsRunner.logits` says: as log-probabilities, because every engine can return those."""
        everything = Sampling(log_probs=self._session.spec.vocab_size)
        return np.stack([self._log_probs(Request(tuple(row), 1, sampling=everything)) for row in prompts])

    def _log_probs(self, request: Request) -> np.ndarray:
        [result] = generate(self._session, [request])
        ids, values = zip(*sorted(result.log_probs[0].top), strict=True)
        assert ids == tuple(range(len(ids))), "log-probabilities of all the vocabulary"
        return np.array(values, np.float32)


def computes(engine_dir: Path) -> Computes:
    """Read the types of an engine's weights, head, KV cache and activations from its files."""
    config = read_engine_config(engine_dir)
    model = config.pretrained_config
    with safe_open(engine_dir / WEIGHTS.format(rank=0), framework="pt") as file:
        weights, head = (
            STORED[file.get_slice(name)[:1].dtype] for name in ("transformer.layers.0.mlp.fc.weight", "lm_head.weight")
        )
    layers, logits = _activations(config.tactics["fc"]), _activations(config.tactics["head"])
    return Computes(weights, head, model.dtype, layers if layers == logits else f"{layers}, head {logits}")


def _activations(tactics: Sequence[str]) -> str:
    alone, together = (
        next((name for prefix, name in ACTIVATIONS.items() if tactic.startswith(prefix)), "float32")
        for tactic in (tactics[0], tactics[-1])
    )
    return alone if alone == together else f"{alone} (several tokens {together})"


def shape_of(config: EngineConfig) -> str:
    """Return the name of an engine's published shape; `UserError` if it has another shape."""
    model = config.pretrained_config
    sizes = model.hidden_size, model.num_hidden_layers, model.num_attention_heads, model.intermediate_size
    found = (name for name, s in SHAPES.items() if (s.hidden, s.layers, s.heads, s.ffn) == sizes)
    name = next(found, None)
    if name is None:
        raise UserError(f"--engine_dir must be of a published shape ({', '.join(SHAPES)}), found sizes {sizes}")
    return name


def precision_of(config: EngineConfig) -> str:
    """Return the key in `PRECISIONS` of an engine's precision; `UserError` if there is none."""
    model = config.pretrained_config
    quantized = ALGORITHMS.get(str(model.quantization["quant_algo"]))
    name = "-".join(filter(None, (quantized, model.dtype))).removesuffix("-float16")
    if name not in PRECISIONS:
        raise UserError(f"--engine_dir must be of a precision known here ({', '.join(PRECISIONS)}), found {name}")
    return name
