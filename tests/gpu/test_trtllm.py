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
from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.backends.trtllm.release import Release, installed_version, missing
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.export_flags import ExportConfig
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.sampling import Sampling
from opt_trt.convert.convert import convert
from opt_trt.convert.export_hf import export_hf
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session
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


PROMPTS = [(2, 100, 200, 300), (2, 7, 1000), (2, 40000, 31, 32, 33, 34)]
SESSIONS = pytest.mark.parametrize(
    "options", [RuntimeOptions(), RuntimeOptions(use_py_session=True)], ids=["C++", "py"]
)


def opened(engine: Path, options: RuntimeOptions) -> Session:
    """Several are open at once; only the C++ runner can be told to leave memory to the others."""
    return open_engine(engine, KvCacheLimit(free_fraction=0.9 if options.use_py_session else 0.2), None, options)


@SESSIONS
def test_a_stream_says_what_the_whole_answer_says(built, options):
    session = opened(built[1], options)
    requests = [Request(prompt, NEW_TOKENS, 2) for prompt in PROMPTS]
    results = generate(session, requests)
    events = list(stream(session, requests))
    for index, result in enumerate(results):
        assert tuple(event.token_id for event in events if event.index == index) == result.output_ids
        assert 1 <= len(result.output_ids) <= NEW_TOKENS


@SESSIONS
def test_an_end_id_no_token_has_ends_nothing(built, options):
    results = generate(opened(built[1], options), [Request(prompt, NEW_TOKENS, None) for prompt in PROMPTS])
    assert [len(result.output_ids) for result in results] == [NEW_TOKENS] * len(PROMPTS)


def test_both_sessions_and_both_accumulations_agree_at_first(built):
    """Greedy, of random weights: the first token of most prompts is the same; later ones follow what came before."""
    everyone = [
        RuntimeOptions(),
        RuntimeOptions(use_py_session=True),
        RuntimeOptions(enable_context_fmha_fp32_acc=True),
    ]
    firsts = []
    for options in everyone:
        session = opened(built[1], options)
        firsts.append([r.output_ids[0] for r in generate(session, [Request(p, 1, None) for p in PROMPTS])])
        del session
    assert sum(len(set(tokens)) == 1 for tokens in zip(*firsts, strict=True)) >= len(PROMPTS) - 1


def test_log_probabilities_add_up(built):
    asking = Sampling(log_probs=0)
    for result in generate(opened(built[1], RuntimeOptions()), [Request(p, 8, 2, sampling=asking) for p in PROMPTS]):
        assert len(result.log_probs) == len(result.output_ids)
        assert all(token.log_prob <= 1e-3 for token in result.log_probs)


def test_draws_differ_and_repeat(built):
    drawn = [
        Request(PROMPTS[0], 8, None, sampling=Sampling(top_k=0, top_p=0.95, random_seed=3, sequence=n))
        for n in range(3)
    ]
    session = opened(built[1], RuntimeOptions())
    once, again = ([r.output_ids for r in generate(session, drawn)] for _ in range(2))
    assert once == again and len(set(once)) > 1
