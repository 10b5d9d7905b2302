"""An engine built on a GPU, with everything in it, says what transformers says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from transformers import OPTForCausalLM

from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.backends.inductor.decoder.launch import Launch
from opt_trt.backends.inductor.decoder.program_table import CudaProgramTable
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.sampling import GREEDY
from opt_trt.convert.convert import convert
from opt_trt.plugins.cuda.graphs import capture
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.sampling.on_device import drawn
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.step import DRAW_COLUMNS
from tests.gpu.conftest import VOCAB

LIMITS = {"max_batch_size": 80, "max_num_tokens": 300, "gather_all_token_logits": True}
POOL = KvCacheLimit(max_tokens=8192)


@pytest.fixture(scope="module")
def engine_of(model_dir, tmp_path_factory):
    """Engines, built once by type."""
    made = {}

    def make(dtype="float16", weight_only=None):
        if (dtype, weight_only) not in made:
            root = tmp_path_factory.mktemp("engine")
            quantize = {"use_weight_only": True, "weight_only_precision": weight_only, "defer_quantization": True}
            convert(
                ConvertConfig(
                    model_dir=str(model_dir), output_dir=str(root / "checkpoint"), dtype=dtype,
                    **(quantize if weight_only else {}),
                )
            )  # fmt: skip
            flags = {"backend": "inductor", "output_timing_cache": str(root / "model.cache"), **LIMITS}
            build(BuildConfig(checkpoint_dir=str(root / "checkpoint"), output_dir=str(root / "engine"), **flags))
            made[dtype, weight_only] = root / "engine"
        return made[dtype, weight_only]

    return make


@pytest.fixture(scope="module")
def oracle(model_dir):
    """Logits of whole sequences, from the weights an engine stores, in fp32 on the CPU."""

    def logits(ids, dtype="float16"):
        model = OPTForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).float().eval()
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0]

    return logits


def prompts(*lengths):
    generator = torch.Generator().manual_seed(11)
    return [tuple(torch.randint(3, VOCAB, (n,), generator=generator).tolist()) for n in lengths]


def differences(result, expected):
    """Of the logits of a prompt and its new tokens, relative to the largest."""
    found = torch.cat((result.context_logits, result.generation_logits[1:]))
    return float((found - expected[: len(found)]).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2**-7), ("bfloat16", 2**-4)])
def test_logits_are_transformers_alone_and_in_flight(engine_of, oracle, dtype, bound):
    session = open_engine(engine_of(dtype), POOL)
    whole = {"return_context_logits": True, "return_generation_logits": True}
    results = generate(session, [Request(prompt, 6, **whole) for prompt in prompts(1, 5, 64, 65, 130)])
    for result in results:
        assert differences(result, oracle([*result.prompt_ids, *result.output_ids], dtype)) < bound


@pytest.mark.parametrize("weight_only", ["int8", "int4"])
def test_quantized_engines_run(engine_of, oracle, weight_only):
    session = open_engine(engine_of("float16", weight_only), POOL)
    [result] = generate(session, [Request(*prompts(20), 4, return_context_logits=True, return_generation_logits=True)])
    expected = oracle([*result.prompt_ids, *result.output_ids])
    assert differences(result, expected) < {"int8": 0.1, "int4": 0.8}[weight_only]  # of the weights' own rounding


def test_captured_steps_say_what_plain_ones_say(engine_of, monkeypatch):
    """Greedy tokens come of replays; steps that are not captured give whole logits."""
    requests = [Request(prompt, 12) for prompt in prompts(*range(3, 73))]  # 70 at a time: beyond the last bucket
    replayed = generate(open_engine(engine_of(), POOL), requests)
    for module in ("cuda", "lookahead"):
        monkeypatch.setattr(f"opt_trt.backends.inductor.decoder.{module}.replayed_rows", lambda inputs: None)
    plain = generate(open_engine(engine_of(), POOL), requests)
    # Rows that fill a step up, and other buckets as sequences end, may turn a tie of rounded numbers.
    same = sum(a.output_ids == b.output_ids for a, b in zip(replayed, plain, strict=True))
    assert same >= 68
    again = generate(open_engine(engine_of(), POOL), requests)
    assert [r.output_ids for r in again] == [r.output_ids for r in replayed]


def test_steps_begun_early_change_no_token(engine_of, monkeypatch):
    """Sequences of all lengths end at different times and others take their place and their blocks."""
    requests = [Request(prompt, 4 + number % 40) for number, prompt in enumerate(prompts(*range(3, 103)))]
    early = generate(open_engine(engine_of(), POOL), requests)
    monkeypatch.setattr("opt_trt.backends.inductor.decoder.lookahead.HitRate.is_good", False)
    plain = generate(open_engine(engine_of(), POOL), requests)
    # A sequence that has ended is still in the step that was begun. Its bucket may be another: a tie may turn.
    assert sum(a.output_ids == b.output_ids for a, b in zip(early, plain, strict=True)) >= 96


def test_drawn_tokens_are_those_of_whole_logits(engine_of):
    """Where a number falls between two tokens may be a matter of rounding; from there on a sequence is another."""
    rules = ({"top_k": 0, "top_p": 1.0}, {"top_k": 20, "temperature": 0.7}, {"top_k": 0, "top_p": 0.8, "min_p": 0.05})
    requests = [
        Request(prompt, 8, sampling=replace(GREEDY, random_seed=number, **rules[number % 3]))
        for number, prompt in enumerate(prompts(*range(3, 73)))
    ]
    on_gpu, on_cpu = open_engine(engine_of(), POOL), open_engine(engine_of(), POOL)
    on_cpu.executor.spec = replace(on_cpu.executor.spec, draws=False)
    found, expected = (generate(session, requests) for session in (on_gpu, on_cpu))
    assert sum(a.output_ids == b.output_ids for a, b in zip(found, expected, strict=True)) >= 66


def test_drawing_among_a_whole_vocabulary_can_be_captured():
    logits = 4 * torch.randn(64, 50272, device="cuda")
    rule = torch.tensor([0.9, 0.0, 0.9, 0.01, 0.5, 0.0], dtype=torch.float64)
    draws = rule.repeat(64, 1).cuda()
    for rows in (1, 2, 64):
        captured = capture(lambda: drawn(logits[:rows], draws[:rows]))  # noqa: B023, it runs here
        for uniform in (0.0, 0.3, 0.999):
            draws[:, DRAW_COLUMNS.number] = uniform
            captured.replay()
            expected = drawn(logits[:rows].cpu(), draws[:rows].cpu())
            assert (captured.result.cpu() == expected).float().mean() > 0.98


def test_a_step_is_launched_before_the_last_one_is_read(engine_of, monkeypatch):
    """Reading waits for an event, not for all the GPU has to do."""
    session = open_engine(engine_of(), POOL)
    generate(session, [Request(*prompts(5), 30)])  # captures
    under_way = []
    read = Launch.read

    def watched(self):
        found = read(self)
        under_way.append(not torch.cuda.current_stream().query())
        return found

    monkeypatch.setattr(Launch, "read", watched)
    generate(session, [Request(*prompts(5), 30)])
    assert sum(under_way) > len(under_way) // 2


def test_sampling_and_beams_run(engine_of):
    session = open_engine(engine_of(), POOL)
    drawn, searched = replace(GREEDY, top_k=5, temperature=0.7), replace(GREEDY, num_beams=3)
    results = generate(session, [Request(prompt, 5, sampling=s) for s in (drawn, searched) for prompt in prompts(7, 9)])
    assert [len(result.output_ids) for result in results] == [5] * 4


def test_both_sums_of_prompts_are_in_the_engine(engine_of, oracle):
    request = Request(*prompts(200), 1, return_context_logits=True, return_generation_logits=True)
    expected = oracle(request.prompt_ids)
    for exact in (True, False):
        options = RuntimeOptions(enable_context_fmha_fp32_acc=exact)
        [result] = generate(open_engine(engine_of(), POOL, options=options), [request])
        assert differences(result, expected) < 2**-6


def test_the_pool_takes_its_share_of_the_gpu_and_gives_it_back(engine_of):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    session = open_engine(engine_of(), KvCacheLimit(free_fraction=0.001))
    free, _ = torch.cuda.mem_get_info()
    cache = sum(layer.nbytes for layer in session.executor.kv_cache)
    assert 0 < cache <= 0.0011 * (free + cache)
    generate(session, [Request(*prompts(5), 3)])
    session.close()
    del session
    assert torch.cuda.memory_allocated() - before < 2**26  # graphs keep little


def test_the_record_names_the_gpu_and_the_programs_are_all_there(engine_of):
    config = json.loads((engine_of() / "config.json").read_text())
    major, minor = torch.cuda.get_device_capability()
    assert config["device"]["type"] == "cuda" and config["device"]["capability"] == f"{major}.{minor}"
    assert len(config["tactics"]["qkv"]) == 8 and config["tactics"]["attention"][-2:] == ["flash", "half_flash"]
    assert len(CudaProgramTable(80, 300, 300, has_half_sums=True).names()) == 1 + 8 + 4 + 8
