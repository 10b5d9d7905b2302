"""Engines of the backend `tensorrt`, run by TensorRT itself, say what transformers says: what no CPU can prove.

The first test runs on any GPU. The others need a GPU that the library has kernels for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import OPTForCausalLM

from opt_trt.backends import open_engine, tensorrt
from opt_trt.backends.build import build
from opt_trt.backends.engine import read_engine_config
from opt_trt.backends.tensorrt.bindings import GENERATION, INPUT_IDS, POSITION_IDS, WANTED, WRITE_INDICES, cache_names
from opt_trt.backends.tensorrt.library import load_library, missing
from opt_trt.checkpoint.packing import pack
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.weight_only import integers
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.sampling import GREEDY, Sampling
from opt_trt.config.scheduling import Scheduling
from opt_trt.convert.convert import convert
from opt_trt.host.memory import free_bytes
from opt_trt.plugins.cuda.gpu import visible_gpu
from opt_trt.quant import MODES
from opt_trt.quant.mode import scale_name
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from opt_trt.text.tokenizer import load_tokenizer
from tests.gpu.conftest import VOCAB
from tests.unit._beams import assert_equal, transformers_beams
from tests.unit.backends.tensorrt._networks import PROJECTED, reference_logits, reference_model, save_model
from tests.unit.backends.tensorrt._slot_sessions import WHOLE, assert_close

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

DEMO = Path(__file__).parents[2] / "examples" / "demo"
LIMITS = {"max_batch_size": 8, "max_input_len": 200, "max_seq_len": 250, "gather_all_token_logits": True}
SM = 80  # that quantized checkpoints are packed for
POOL = KvCacheLimit(max_tokens=8 * 250)
LENGTHS = (130, 1, 5, 64, 65, 2, 200, 17, 90, 33)  # more than slots
TOLERANCE = {"float32": 1e-4, "float16": 2**-7, "bfloat16": 2**-4}  # of the largest logit


@pytest.fixture(scope="module")
def engine_of(model_dir, tmp_path_factory):
    """Engines, built once by model, type and weights."""
    made = {}

    def make(dtype="float16", weights=None, model=model_dir):
        if (dtype, weights, model) not in made:
            root = tmp_path_factory.mktemp("engine")
            flags = {"use_weight_only": True, "weight_only_precision": weights, "defer_quantization": True}
            source = {"model_dir": str(model), "dtype": dtype, **(flags if weights else {})}
            convert(ConvertConfig(output_dir=str(root / "checkpoint"), log_level="warning", **source))
            places = {"checkpoint_dir": str(root / "checkpoint"), "output_dir": str(root / "engine")}
            build(BuildConfig(backend="tensorrt", **places, **LIMITS))
            made[dtype, weights, model] = root / "engine"
        return made[dtype, weights, model]

    return make


def test_the_library_says_at_once_whether_this_gpu_runs_an_engine(engine_of):
    """Validity is a matter of the first bytes: this takes a second, on any GPU."""
    library, engine = load_library(), engine_of()
    runtime = library.Runtime(library.Logger(library.Logger.ERROR))
    if not hasattr(runtime, "get_engine_validity"):
        pytest.skip("this library does not say it before it opens an engine")
    validity, bits = runtime.get_engine_validity((engine / "rank0.engine").read_bytes()[:4096])
    problems = [name for name, bit in library.EngineInvalidityDiagnostics.__members__.items() if bits & int(bit)]
    built, gpu = read_engine_config(engine).device["capabilities"].split(), visible_gpu()
    print(f"measured: {gpu}: {validity.name} {problems}, an engine for {built}")
    assert (validity.name != "INVALID") == (gpu.capability in built), (gpu, validity.name, problems, built)


@pytest.fixture(scope="module")
def opened(engine_of):
    """Sessions over caches of NaN, on a GPU that the library has kernels for."""
    if not tensorrt.machine():
        pytest.skip(f"the library has no kernels for {visible_gpu()}")

    def make(*engine: str | Path | None, scheduling=None, **options: object) -> DecoderSession:
        return opened_at(engine_of(*engine), scheduling, **options)

    return make


def opened_at(engine: Path, scheduling: Scheduling | None = None, **options: object) -> DecoderSession:
    """Return a session over caches of NaN."""
    session = open_engine(engine, POOL, scheduling, RuntimeOptions(**options))
    for cache in session.executor.kv_cache:
        cache.fill_(torch.nan)
    return session


def prompts(lengths: Sequence[int] = LENGTHS) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(11)
    return [tuple(torch.randint(3, VOCAB, (n,), generator=generator).tolist()) for n in lengths]


def compare(session: DecoderSession, oracle: OPTForCausalLM, share: float) -> None:
    """Compare all logits of more requests than slots, with chunks of prompts beside generation."""
    results = generate(session, [Request(prompt, 10, **WHOLE) for prompt in prompts()])
    for result in results:
        largest = float(reference_logits(oracle, result.prompt_ids).abs().max())
        assert_close(result, oracle, share * largest)
    greedy = generate(session, [Request(prompt, 10) for prompt in prompts()])
    assert [result.output_ids for result in greedy] == [result.output_ids for result in results]


def test_nibbles_of_int4_weights_are_read_in_our_order(opened, model_dir):
    """Which of two nibbles comes first, and their sign, is documented nowhere; a failure says how they are read."""
    [result] = generate(opened("float16", "int4"), [Request(prompts()[0], 2, **WHOLE)])
    expected = reference_logits(reference_model(model_dir, "float16", "int4"), result.prompt_ids)
    swapped = reference_logits(swap_nibbles(reference_model(model_dir, "float16")), result.prompt_ids)
    errors = [float((result.context_logits - logits).abs().max()) for logits in (expected, swapped)]
    print(f"measured: largest error with the low nibble first {errors[0]:.4g}, with the high one first {errors[1]:.4g}")
    assert errors[0] < TOLERANCE["float16"] * expected.abs().max(), errors
    assert errors[1] > 10 * errors[0], "the test cannot tell one order from the other"


@torch.no_grad()
def swap_nibbles(model: OPTForCausalLM) -> OPTForCausalLM:
    """Quantize all linears to int4, and exchange the integers of each two neighbouring outputs: they share a byte."""
    mode = MODES["int4"]
    for name, weight in model.named_parameters():
        if ".layers." in name and weight.ndim == 2:
            q, scale = mode.quantize(weight.half())
            weight.data = mode.dequantize(q.unflatten(0, (-1, 2)).flip(1).flatten(0, 1), scale).half().float()
    return model


DENSE = "layers.1.attention.dense.weight"


def test_int8_weights_of_minus_128_and_channels_of_zeros_are_read(opened, model_dir, tmp_path):
    """No converter writes -128, but a checkpoint of another program may; a channel of zeros has the scale 0."""
    checkpoint = convert_int8(model_dir, tmp_path / "checkpoint")
    name = f"transformer.{DENSE}"
    q, scale = integers(checkpoint, name)
    q[5], q[::7, ::3], q[6], scale[6] = -128, -128, 0, 0
    tensors = dict(checkpoint.tensors()) | {name: pack(q, 8, SM), scale_name(name): scale}
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, checkpoint.path)
    places = {"checkpoint_dir": str(checkpoint.directory), "output_dir": str(tmp_path / "engine")}
    build(BuildConfig(backend="tensorrt", **places, **LIMITS))
    oracle = reference_model(model_dir, "float16", "int8")
    weight = oracle.get_submodule("model.decoder.layers.1.self_attn.out_proj").weight
    weight.data = MODES["int8"].dequantize(q, scale).half().float()
    compare(opened_at(tmp_path / "engine"), oracle, TOLERANCE["float16"])


def convert_int8(model: Path, directory: Path) -> Checkpoint:
    """Return a checkpoint whose weights are packed for `SM`."""
    flags = {"use_weight_only": True, "target_sm": SM, "dtype": "float16", "log_level": "warning"}
    convert(ConvertConfig(model_dir=str(model), output_dir=str(directory), **flags))
    return Checkpoint(directory)


KINDS = {"post-norm": {"do_layer_norm_before": False, "word_embed_proj_dim": 256}, "projected": PROJECTED}
SIZES = {
    "hidden_size": 256, "num_attention_heads": 4, "ffn_dim": 512, "vocab_size": VOCAB, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_the_350m_kind_say_what_transformers_says(opened, tmp_path, kind, weights):
    model = save_model(tmp_path / "model", std=0.06, **SIZES, **KINDS[kind])
    session = opened("float16", weights, model)
    compare(session, reference_model(model, "float16", weights), TOLERANCE["float16"])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logits_are_those_of_transformers(opened, model_dir, dtype):
    session = opened(dtype, scheduling=Scheduling(context_chunk_size=40))
    compare(session, reference_model(model_dir, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_logits_of_quantized_weights_are_those_of_transformers(opened, model_dir, dtype, weights):
    compare(opened(dtype, weights), reference_model(model_dir, dtype, weights), TOLERANCE[dtype])


def test_a_write_behind_the_end_of_a_cache_changes_nothing(opened):
    """The library documents it. No step relies on it: idle rows write to a row of their own."""
    session = opened()
    caches, decoder = session.executor.kv_cache, session.executor.decoder
    generate(session, [Request(prompt, 2) for prompt in prompts((9, 7))])
    before = [cache.clone() for cache in caches]
    feeds = {INPUT_IDS: [[5], [6]], POSITION_IDS: [[9], [7]], WRITE_INDICES: [caches[0].shape[2], 7], WANTED: [0, 1]}
    there = {name: torch.tensor(values, dtype=torch.int32).to(caches[0].device) for name, values in feeds.items()}
    names = cache_names(len(caches) // 2)
    decoder._run(GENERATION, there, {name: cache[:2] for name, cache in zip(names, caches, strict=True)})
    for old, new in zip(before, caches, strict=True):
        changed = (old != new) & ~(old.isnan() & new.isnan())
        assert changed[1, :, 7].any() and not changed[0].any() and not changed[2:].any()
        assert not changed[1, :, :7].any() and not changed[1, :, 8:].any()


def test_kernels_are_compiled_once(opened, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found, seconds = [], []
    for _ in range(2):
        start = time.perf_counter()
        found += [result.output_ids for result in generate(opened(), [Request(prompts()[1], 4)])]
        seconds += [time.perf_counter() - start]
    print(f"measured: opened and answered in {seconds[0]:.2f} s, with kept kernels in {seconds[1]:.2f} s")
    assert found[0] == found[1]
    assert len(list(tmp_path.rglob("*.kernels"))) == tensorrt_compiles()


def tensorrt_compiles() -> bool:
    """Return whether the library compiles on the GPU, so that there are kernels to keep."""
    return hasattr(load_library(), "IRuntimeCache")


def test_graphs_change_no_token(opened):
    if not hasattr(load_library(), "CudaGraphStrategy"):
        pytest.skip("this library captures no graphs")
    requests = [Request(prompt, 20) for prompt in prompts()]
    plain, replayed = (generate(opened(cuda_graph_mode=on), requests) for on in (False, True))
    assert [result.output_ids for result in plain] == [result.output_ids for result in replayed]


def test_summaries_of_the_demo_are_those_of_transformers(opened):
    """Each token is the one that transformers, given all before it, finds likeliest, or as good as that one."""
    articles = (DEMO / "test.jsonl").read_text().splitlines()[:32]
    tokenizer = load_tokenizer(str(DEMO / "model"))
    texts = [f"{json.loads(line)['article']} TL;DR:" for line in articles]
    requests = [Request(tokenizer.encode(text, 200), 20) for text in texts]
    oracle = OPTForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    same = 0
    for result in generate(opened("float16", None, DEMO / "model"), requests):
        logits = reference_logits(oracle, result.prompt_ids + result.output_ids)[len(result.prompt_ids) - 1 : -1]
        lost = logits.amax(1) - logits.gather(1, torch.tensor(result.output_ids)[:, None])[:, 0]
        assert lost.max() < 2 * TOLERANCE["float16"] * logits.abs().max()
        same += bool((lost == 0).all())
    assert same >= 28


def test_beams_and_drawn_tokens(opened, model_dir):
    session, oracle = opened("float32"), reference_model(model_dir, "float32")
    beams = [
        Request(prompt, 6, sampling=Sampling(num_beams=n)) for prompt, n in zip(prompts((9, 30)), (2, 4), strict=True)
    ]
    drawn = [Request(prompt, 8, sampling=replace(GREEDY, top_k=20, random_seed=5)) for prompt in prompts((4, 50))]
    results = generate(session, [*beams, *drawn])
    for request, result in zip(beams, results, strict=False):
        assert_equal(result, transformers_beams(oracle, request))
    session.executor.spec = replace(session.executor.spec, draws=False)  # whole logits, drawn from on the host
    again = generate(session, drawn)
    assert [result.output_ids for result in again] == [result.output_ids for result in results[2:]]


def test_a_closed_session_gives_its_memory_back(opened):
    session = opened()
    held = free_bytes(session.spec.device)
    generate(session, [Request(prompt, 4) for prompt in prompts()])
    caches = sum(cache.nbytes for cache in session.executor.kv_cache)
    session.close()
    del session
    assert free_bytes("cuda") - held > 0.9 * caches
