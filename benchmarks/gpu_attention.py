"""Attention from products and a softmax, as our engines have it, against TensorRT's own layer: errors and times.

    python benchmarks/gpu_attention.py --batch_size 1 8 --length 16 2047

Both engines have random weights and the same mask. Errors are the largest differences of logits to transformers'.
NVIDIA's own builders dropped the layer's way to tell lengths after wrong results, so a mask takes its place here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

import torch
from gpu_tensorrt import build_engine, step_ms
from models import SHAPES, random_model

from opt_trt.backends import open_engine
from opt_trt.backends.checksums import checksums_of
from opt_trt.backends.engine import CONFIG, read_engine_config
from opt_trt.backends.tensorrt import network
from opt_trt.backends.tensorrt.compile_rank import Job, compile_rank
from opt_trt.backends.tensorrt.engine_shape import engine_shape
from opt_trt.backends.tensorrt.open_session import ENGINE
from opt_trt.backends.tensorrt.primitives import Primitives
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession

PROMPT = tuple(range(10, 110))


def attention_layer(_: Any, ops: Primitives, query: Any, keys: Any, values: Any, shared: Any) -> Any:
    """Return what each head sees, by the library's own layer; it stands for `_Decoder._attend`."""
    library, layers = ops._library, ops._network
    layer = layers.add_attention(query, keys, values, library.AttentionNormalizationOp.SOFTMAX, False)
    layer.mask, layer.decomposable = shared.seen, True
    return layer.get_output(0)


def use_layer(engine: Path, checkpoint: Path) -> list[str]:
    """Build an engine's plan again with the library's own layer; return what the builder said."""
    config, said = read_engine_config(engine), []
    shape = engine_shape(config.pretrained_config, config.build_config)
    targets = [int(capability.replace(".", "")) for capability in config.device["capabilities"].split()]
    job = Job(
        checkpoint_dir=str(checkpoint), packed_sm=None, rank=0, shape=asdict(shape),
        logits_dtype=config.pretrained_config.logits_dtype, lm_head_precision=None, target_sms=targets,
        builder_flags=[], fast=False, plan=str(engine / ENGINE), input_timing_cache=None, output_timing_cache=None,
        lists_network=False, is_verbose=False,
    )  # fmt: skip
    with patch.object(network._Decoder, "_attend", attention_layer):
        compile_rank(job, lambda **event: said.extend(event.get("log", ())[1:]))
    (engine / CONFIG).unlink()
    changed = replace(config, files=checksums_of(engine))
    (engine / CONFIG).write_text(json.dumps(changed.to_dict()))
    return said


def largest_error(session: DecoderSession, expected: torch.Tensor) -> float:
    """Return the largest difference of a prompt's last logits."""
    [result] = generate(session, [Request(PROMPT, 1, return_generation_logits=True)])
    return float((result.generation_logits[0].float() - expected).abs().max())


@torch.inference_mode()
def reference(model: Path) -> torch.Tensor:
    """Return transformers' logits of the token after `PROMPT`."""
    from transformers import OPTForCausalLM

    logits: torch.Tensor = OPTForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.tensor([PROMPT])).logits
    return logits[0, -1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="opt-125m", choices=SHAPES)
    parser.add_argument("--batch_size", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--length", nargs="+", type=int, default=[16, 2047])
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = random_model(args.shape, Path(directory) / "model")
        expected = reference(model)
        for form in ("products", "layer"):
            engine = build_engine(model, "float16", max(args.batch_size), Path(directory) / form)
            if form == "layer":
                use_layer(engine, engine.with_name("checkpoint"))
            session = open_engine(engine, KvCacheLimit())
            print(f"{form}: largest error {largest_error(session, expected):.4g}", flush=True)
            for rows, length in ((r, n) for r in args.batch_size for n in args.length):
                ms = step_ms(session, rows, length, args.repeats)
                print(f"{form} batch {rows} length {length}: {ms:.3f} ms", flush=True)
            session.close()


if __name__ == "__main__":
    main()
