"""Turn a checkpoint into an engine directory, with the backend that fits this machine."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import torch

from opt_trt.backends import choose_backend, load_backend
from opt_trt.backends.engine import CONFIG
from opt_trt.checkpoint.reader import Checkpoint, check_target_sm, read_config
from opt_trt.checkpoint.tokenizer_files import KEPT, keep_tokenizer, kept_tokenizer
from opt_trt.config.build_flags import BuildConfig
from opt_trt.errors import UserError, spelled
from opt_trt.host.atomic import atomic_directory
from opt_trt.host.disk import size_text
from opt_trt.host.program import program_of
from opt_trt.model.config import ModelConfig
from opt_trt.plugins.cuda.gpu import visible_gpu

# Files of an engine. A checkpoint has none of them, so it is never replaced.
OWNED = ("rank*.engine", "rank*.weights.safetensors", "opt_trt_*.so", *KEPT)


def build(config: BuildConfig) -> None:
    """Build the engine that `config` describes; its directory appears only when it is complete."""
    assert config.checkpoint_dir is not None
    started = time.perf_counter()
    backend = load_backend(_choose(config))
    ranks = _read_buildable(Path(config.checkpoint_dir), config).mapping.world_size
    checkpoint = Checkpoint(config.checkpoint_dir, packed_sm=config.packed_sm)
    out = Path(config.output_dir)
    if config.dry_run:
        backend.build(checkpoint, config, out)
        return
    with atomic_directory(out, owned=OWNED) as temporary:
        report = backend.build(checkpoint, config, temporary)
        keep_tokenizer(Path(config.checkpoint_dir), temporary)
    if not config.talks:
        return
    print(report, end="")
    size = sum(path.stat().st_size for path in out.rglob("*"))
    print(f"engine {out}: {size_text(size)}, built in {time.perf_counter() - started:.1f} s")
    print(f"next{_elsewhere(out)}: {_next(out, ranks)}")


def _next(engine: Path, ranks: int) -> str:
    """Return the command that runs an engine."""
    launched = "" if ranks == 1 else f"mpirun -n {ranks} "
    tokenizer = "" if kept_tokenizer(engine) else " --tokenizer_dir TOKENIZER"
    flags = f"--engine_dir {shlex.quote(str(engine))}{tokenizer} --max_output_len 50 --input_text 'A text'"
    return f"{launched}{program_of('run')} {flags}"


def _elsewhere(engine_dir: Path) -> str:
    """Return which GPUs an engine runs on if it does not run on this machine, else nothing."""
    device = json.loads((engine_dir / CONFIG).read_text(encoding="utf-8")).get("device", {})
    capabilities, gpu = str(device.get("capabilities", "")).split(), visible_gpu()
    if not capabilities or (gpu is not None and gpu.capability in capabilities):
        return ""
    return f", on a GPU of compute capability {', '.join(capabilities)}"


def _choose(config: BuildConfig) -> str:
    """Return the backend to build with; a dry run of a named backend needs nothing of it installed."""
    if config.dry_run and config.backend != "auto":
        return config.backend
    chosen = choose_backend(config.backend, config.device)
    if chosen.passed_over and config.talks:
        has_gpu = torch.cuda.is_available()  # without one, nothing that could be installed would help
        print(f"backend {chosen.name} ({chosen.passed_over})" if has_gpu else f"backend {chosen.name}, for this CPU")
    return chosen.name


def _read_buildable(directory: Path, config: BuildConfig) -> ModelConfig:
    """Read the checkpoint's configuration; refuse flags that do not fit it, and weights packed for an unknown GPU."""
    model = read_config(directory, config.packed_sm)
    check_target_sm(directory, model)
    positions = model.max_position_embeddings
    if (asked := config.longest_sequence(positions)) > positions:
        said = spelled("max_seq_len")
        if config.max_output_len is not None:
            said = f"{spelled('max_input_len')} + {spelled('max_output_len')} ="
        raise UserError(
            f"{said} {asked} is beyond the checkpoint's position table of {positions} rows; give at most {positions}"
        )
    for name in ("gemm_plugin", "gpt_attention_plugin"):
        value = getattr(config, name)
        if value not in ("auto", "disable", model.dtype):
            raise UserError(
                f"{spelled(name)} {value} does not fit a checkpoint of {model.dtype}; give auto, {model.dtype} or "
                "disable"
            )
    _check_embedding_sharding(model, config)
    return model


def _check_embedding_sharding(model: ModelConfig, config: BuildConfig) -> None:
    """Refuse sharding flags that differ from the conversion, which decides them. NVIDIA's README passes them here."""
    command = f"{program_of('convert')} --use_parallel_embedding --embedding_sharding_dim"
    if config.use_parallel_embedding and not model.use_parallel_embedding:
        raise UserError(
            f"{spelled('use_parallel_embedding')}: the checkpoint was converted without it; "
            f"convert it with {command} {config.embedding_sharding_dim or 0} ..."
        )
    if config.embedding_sharding_dim is not None and config.embedding_sharding_dim != model.embedding_sharding_dim:
        raise UserError(
            f"{spelled('embedding_sharding_dim')} {config.embedding_sharding_dim}: the checkpoint was converted with "
            f"{model.embedding_sharding_dim}; convert it with {command} {config.embedding_sharding_dim} ..."
        )
