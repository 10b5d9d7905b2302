"""Turn a checkpoint into an engine directory, with the backend that fits this machine."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from opt_trt.atomic import atomic_directory
from opt_trt.backends import choose_backend, load_backend
from opt_trt.checkpoint import Checkpoint, check_target_sm, read_config
from opt_trt.config.build import BuildConfig
from opt_trt.config.flags import TALKATIVE
from opt_trt.config.model import ENGINE_ACTIVATION, ModelConfig
from opt_trt.errors import UserError

OWNED = ("rank*.engine", "rank*.weights.safetensors", "opt_trt_*.so")  # no checkpoint matches: it is not replaced


def build(config: BuildConfig) -> None:
    """Build the engine `config` asks for; the directory appears only when it is whole."""
    assert config.checkpoint_dir is not None
    started = time.perf_counter()
    backend = load_backend(choose_backend(config.backend))
    ranks = _refuse_unbuildable(Path(config.checkpoint_dir)).mapping.world_size
    checkpoint = Checkpoint(config.checkpoint_dir)
    out = Path(config.output_dir)
    if config.dry_run:
        backend.build(checkpoint, config, out)
        return
    with atomic_directory(out, owned=OWNED) as temporary:
        backend.build(checkpoint, config, temporary)
    if config.log_level not in TALKATIVE:
        return
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"engine {out}: {size / 2**20:.1f} MiB, built in {time.perf_counter() - started:.1f} s")
    engine = shlex.quote(str(out))
    command = "python run.py" if ranks == 1 else f"mpirun -n {ranks} python run.py"
    print(f"next: {command} --engine_dir {engine} --tokenizer_dir TOKENIZER --max_output_len 50 --input_text 'A text'")


def _refuse_unbuildable(directory: Path) -> ModelConfig:
    """Name what a checkpoint may be and an engine cannot be yet; what it is, if it can."""
    model = read_config(directory)
    check_target_sm(directory, model)
    if model.hidden_act != ENGINE_ACTIVATION:
        raise UserError(
            f"{directory} has hidden_act {model.hidden_act!r}, and engines compute {ENGINE_ACTIVATION} only; "
            "build this checkpoint with TensorRT-LLM's trtllm-build"
        )
    return model
