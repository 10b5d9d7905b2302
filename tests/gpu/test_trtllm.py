"""The tensorrt_llm backend with the real package on a GPU; has not run in CI.

In the environment that docs/tensorrt_llm.md describes: `python -m pytest -m gpu tests/gpu/test_trtllm.py`
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from opt_trt.api.llm import LLM
from opt_trt.backends.trtllm.release import Release, installed_version, missing
from opt_trt.build import build
from opt_trt.config.build import BuildConfig
from opt_trt.config.convert import ConvertConfig
from opt_trt.config.export_hf import ExportConfig
from opt_trt.convert import convert
from opt_trt.export_hf.export import export_hf
from tests.trtllm._facts import load, releases
from tests.trtllm._installed import differences, installed_flags

LACKING = missing()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"backend tensorrt_llm: {LACKING}")
PRECISIONS = {
    "float16": {},
    "int8": {"use_weight_only": True},
    "int4": {"use_weight_only": True, "weight_only_precision": "int4"},
    "deferred": {"use_weight_only": True, "defer_quantization": True},
}
NEW_TOKENS = 16
# Of fp16 activations through twelve layers against fp32, in units of the spread of a token's logits: of random weights
# the best ones lie this close together.
TOLERANCE = 0.1


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """OPT-125M's shape with random weights, large enough for tokens to differ."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    config = OPTConfig(init_std=0.06, dtype="float16")
    OPTForCausalLM(config).half().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=PRECISIONS)
def built(request, model, tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint of each precision and its engine."""
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint, engine = directory / "checkpoint", directory / "engine"
    convert(ConvertConfig(model_dir=str(model), output_dir=str(checkpoint), **PRECISIONS[request.param]))
    build(BuildConfig(
        checkpoint_dir=str(checkpoint), output_dir=str(engine), backend="tensorrt_llm", max_batch_size=4,
        max_input_len=64, max_seq_len=128, output_timing_cache=str(directory / "model.cache"),
    ))  # fmt: skip
    return checkpoint, engine


def test_the_facts_are_those_of_the_installed_release():
    release = Release.parse(str(installed_version()))
    facts = {Release.parse(v): load(name).facts for name in releases() for v in load(name).versions}
    if release not in facts:
        pytest.skip(f"no facts of TensorRT-LLM {release} alone")
    assert differences(facts[release], installed_flags(dict(os.environ))) == []


def test_the_engine_is_what_was_asked_for(built):
    _, engine = built
    config = json.loads((engine / "config.json").read_text())
    assert config["version"] == installed_version()
    assert config["pretrained_config"]["architecture"] == "OPTForCausalLM"
    limits = config["build_config"]
    assert (limits["max_batch_size"], limits["max_seq_len"], limits["kv_cache_type"]) == (4, 128, "PAGED")
    assert sorted(path.name for path in engine.iterdir()) == ["config.json", "rank0.engine"]


def test_generated_tokens_are_transformers_choice_with_the_same_weights(built, tmp_path):
    """Each token generated is, given all before it, as likely as transformers' best or close to it."""
    checkpoint, engine = built
    export_hf(ExportConfig(checkpoint_dir=str(checkpoint), output_dir=str(tmp_path / "hf")))
    reference = OPTForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    prompts = torch.randint(4, 50000, (3, 20), generator=torch.Generator().manual_seed(1))
    with LLM(engine) as llm:
        ids = llm.generate_ids(prompts, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    with torch.no_grad():
        logits = reference(ids).logits[:, prompts.shape[1] - 1 : -1]  # [rows, NEW_TOKENS, vocabulary]
    chosen = logits.gather(-1, ids[:, prompts.shape[1] :, None]).squeeze(-1)
    assert ((logits.amax(-1) - chosen) / logits.std(-1)).max() <= TOLERANCE
