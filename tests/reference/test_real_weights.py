"""Published OPT weights against transformers, if they are on the disk.

OPT_TRT_REFERENCE_DIR=/models/opt-125m python -m pytest -m reference tests
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import OPTForCausalLM

from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.text.tokenizer import load_tokenizer

DIRECTORY = os.environ.get("OPT_TRT_REFERENCE_DIR")
pytestmark = pytest.mark.skipif(DIRECTORY is None, reason="OPT_TRT_REFERENCE_DIR names no Hugging Face OPT directory")
PROMPTS = (
    "Today is a beautiful day and",
    "In the city of",
    "Paris is the capital of France and",
    "Computers and mobile",
)
TIE = 1e-4


def test_greedy_ids_equal_transformers_in_fp32(tmp_path):
    model_dir = Path(DIRECTORY or "")
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(tmp_path / "checkpoint"), dtype="float32"))
    cache = str(tmp_path / "model.cache")
    build(BuildConfig(
        checkpoint_dir=str(tmp_path / "checkpoint"), output_dir=str(tmp_path / "engine"), output_timing_cache=cache
    ))  # fmt: skip
    session = open_engine(tmp_path / "engine", KvCacheLimit(max_tokens=2048))
    tokenizer = load_tokenizer(model_dir)
    model = OPTForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    requests = [Request(tokenizer.encode(text, 100), 20) for text in PROMPTS]
    for request, result in zip(requests, generate(session, requests), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*request.prompt_ids, *result.output_ids]])).logits[0]
        top = logits[len(request.prompt_ids) - 1 : -1].topk(2)
        for token, ids, values in zip(result.output_ids, top.indices.tolist(), top.values.tolist(), strict=True):
            assert token == ids[0] or values[0] - values[1] < TIE
