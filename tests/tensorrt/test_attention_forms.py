"""The other form of attention, which a GPU day compares with ours, builds and has its own kernels."""

from __future__ import annotations

import json

from opt_trt.backends.engine import read_engine_config
from opt_trt.backends.tensorrt.bindings import GENERATION
from opt_trt.backends.tensorrt.kernels import read_kernels
from opt_trt.backends.tensorrt.open_session import ENGINE
from tests._commands import run_command
from tests._processes import run_python
from tests.tensorrt.conftest import LAYERS

# In a process of its own: the library keeps the first logger of a process.
USE_LAYER = (
    "import json, sys; from pathlib import Path; from gpu_attention import use_layer; "
    "print(json.dumps(use_layer(Path(sys.argv[1]), Path(sys.argv[2]))), file=open(sys.argv[3], 'w'))"
)


def test_an_engine_is_built_again_with_the_library_s_own_attention(checkpoints, tmp_path):
    engine, said = tmp_path / "engine", tmp_path / "said"
    limits = ("--backend", "tensorrt", "--max_batch_size", 8, "--max_seq_len", 128, "--target_sm", 89)
    code, output = run_command("build", "--checkpoint_dir", checkpoints("fp16"), "--output_dir", engine, *limits)
    assert code == 0, output
    ours = (engine / ENGINE).read_bytes()
    done = run_python("-c", USE_LAYER, engine, checkpoints("fp16"), said, environment={"PYTHONPATH": "benchmarks"})
    assert done.returncode == 0, done.stderr
    table = read_kernels(json.loads(said.read_text()), LAYERS)
    assert table.fused(GENERATION) == LAYERS and (engine / ENGINE).read_bytes() != ours
    assert read_engine_config(engine).files[ENGINE]
