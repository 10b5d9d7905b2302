"""ROUGE-1 of the demo model at each precision: the engine beside transformers with the same rounded weights.

    python benchmarks/accuracy.py [--precision int8 "int8 head"] [--rows 256] [--batch_size 8]

Transformers computes in fp32. Its weights are rounded to the type of the engine (int8 and int4 are quantized), then
widened again. So every difference comes from the engine: from its kernels, its rounded KV cache or its in-flight
batching. Rows are paired; the interval is a bootstrap over rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import OPTForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.evaluate.engine_summarizer import EngineSummarizer
from opt_trt.evaluate.hf_reference import Decoding, HfReference
from opt_trt.evaluate.prompts import prompt_text
from opt_trt.evaluate.rouge import score_rouge
from opt_trt.evaluate.summarizer import Summarizer, TokenIds
from opt_trt.quant import MODES
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.text.tokenizer import load_tokenizer

DEMO = Path(__file__).parents[1] / "examples/demo"
PRECISIONS = {  # name: type of the tables and the head, quant mode of the linears, that of the head
    "float32": ("float32", None, None), "float16": ("float16", None, None), "bfloat16": ("bfloat16", None, None),
    "int8": ("float16", "int8", None), "int4": ("float16", "int4", None),
    "int8 head": ("float16", None, "int8"), "int4 head": ("float16", None, "int4"),
    "int8, too": ("float16", "int8", "int8"), "int4, too": ("float16", "int4", "int4"),
    "int8 by int8": ("float16", "int8", None), "int4 by int8": ("float16", "int4", None),
}  # fmt: skip
CONTEXT_INT8 = ("int8 by int8", "int4 by int8")  # activations of several tokens in int8, too
LINEARS = ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")


def rounded_model(precision: str, out: Path) -> Path:
    """Write the demo model in fp32, with every weight rounded as in the engine."""
    dtype, mode, head = PRECISIONS[precision]
    model = OPTForCausalLM.from_pretrained(DEMO / "model", dtype=getattr(torch, dtype))
    exact = {
        f"{name}.weight": MODES[mode].dequantize(*MODES[mode].quantize(module.weight.detach()))
        for name, module in model.named_modules()
        if mode and name.endswith(LINEARS)
    }
    model = model.float()
    model.load_state_dict(exact, strict=False)
    if head:
        weight = MODES[head].dequantize(*MODES[head].quantize(model.lm_head.weight.detach()))
        model.lm_head.weight, model.config.tie_word_embeddings = torch.nn.Parameter(weight), False
    model.save_pretrained(out)
    return out


def engine_summaries(precision: str, work: Path, prompts: list[TokenIds], batch_size: int) -> list[TokenIds]:
    """Convert and build the demo model, and return its summaries."""
    checkpoint, engine = work / "checkpoint", work / "engine"
    dtype, mode, head = PRECISIONS[precision]
    quantize = {"use_weight_only": True, "weight_only_precision": mode} if mode else {}
    quiet = {"log_level": "warning"}
    convert(ConvertConfig(model_dir=str(DEMO / "model"), output_dir=str(checkpoint), dtype=dtype, **quantize, **quiet))
    cache = str(work / "model.cache")
    paths = {"checkpoint_dir": str(checkpoint), "output_dir": str(engine), "output_timing_cache": cache}
    build(BuildConfig(**paths, lm_head_precision=head, context_int8=precision in CONTEXT_INT8, **quiet))
    session = open_engine(engine, KvCacheLimit(max_tokens=16384))
    return in_batches(EngineSummarizer(session, 100, 2), prompts, batch_size)


def in_batches(summarizer: Summarizer, prompts: list[TokenIds], batch_size: int) -> list[TokenIds]:
    """Return all summaries, computed in batches."""
    batches = (prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size))
    return [output for batch in batches for output in summarizer.generate(batch)]


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean difference."""
    draws = np.random.default_rng(0).choice(differences, (2000, len(differences))).mean(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    arguments = parser.parse_args()

    tokenizer = load_tokenizer(DEMO / "model")
    rows = [json.loads(line) for line in (DEMO / "test.jsonl").read_text().splitlines()][: arguments.rows]
    prompts = [tokenizer.encode(prompt_text(row["article"]), 923) for row in rows]
    print(f"{'precision':<13}{'HF':>8}{'engine':>8}{'difference':>12}  {'95 % interval':<18}{'same summaries':>15}")
    for precision in arguments.precision:
        with tempfile.TemporaryDirectory() as work:
            ours = engine_summaries(precision, Path(work), prompts, arguments.batch_size)
            reference = HfReference(rounded_model(precision, Path(work, "hf")), "fp32", Decoding(100, 2, 1))
            theirs = in_batches(reference, prompts, arguments.batch_size)
        scores = [
            np.array([score_rouge([r["highlights"]], [tokenizer.decode(o)]).mean["rouge1"] for r, o in pairs])
            for pairs in (zip(rows, theirs, strict=True), zip(rows, ours, strict=True))
        ]
        low, high = paired_interval(scores[1] - scores[0])
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        difference = scores[1].mean() - scores[0].mean()
        interval = f"{low:+.2f} to {high:+.2f}"
        print(
            f"{precision:<13}{scores[0].mean():>8.2f}{scores[1].mean():>8.2f}{difference:>+12.2f}  {interval:<18}"
            f"{same:>8} of {len(rows)}"
        )


if __name__ == "__main__":
    main()
