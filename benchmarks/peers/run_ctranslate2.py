"""CTranslate2, with weights in int8 or float32; with int8, each row of activations is quantized at run time, too."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import numpy as np
from worker import LoadedModel, Prompts, run

# Activations by compute type. The library silently replaces a type that the processor lacks, so it is checked below.
ACTIVATIONS = {
    "float32": "float32", "bfloat16": "bfloat16", "int8_float32": "int8 (each row, dynamic), else float32",
    "int8_bfloat16": "int8 (each row, dynamic), else bfloat16", "int8": "int8 (each row, dynamic), else float32",
}  # fmt: skip


def convert(hf: str, out: str, variant: str) -> None:
    """Convert with CTranslate2's converter for OPT; embedding and head are one matrix, so both are quantized."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(hf).convert(out, quantization=variant)


def open_model(model: str, variant: str) -> LoadedModel:
    """Open the model on all cores, with one batch at a time."""
    offered = ctranslate2.get_supported_compute_types("cpu")
    if variant not in offered:
        raise SystemExit(f"this processor has no {variant}, only {', '.join(sorted(offered))}")
    generator = ctranslate2.Generator(model, device="cpu", compute_type=variant)
    words = json.loads((Path(model) / "vocabulary.json").read_text())

    def prepare(prompts: Prompts) -> list[list[str]]:
        return [[words[index] for index in row] for row in prompts]

    def generate(prompts: list[list[str]], output_len: int) -> list[list[int]]:
        answers = generator.generate_batch(
            prompts, min_length=output_len, max_length=output_len, include_prompt_in_result=False
        )
        return [answer.sequences_ids[0] for answer in answers]

    def logits(prompts: Prompts) -> np.ndarray:
        rows = (generator.forward_batch([row]).to(ctranslate2.DataType.float32) for row in prepare(prompts))
        return np.concatenate([np.array(row)[:, -1] for row in rows])

    weights, _, rest = variant.partition("_")
    plain = rest or ("float32" if weights == "int8" else weights)
    computes = {"weights": weights, "head": weights, "kv_cache": plain, "activations": ACTIVATIONS[variant]}
    return LoadedModel(computes, prepare, generate, logits)


if __name__ == "__main__":
    run(open_model, convert)
