"""Open a session on an engine: is there a GPU it was built for, and does it do what the flags ask for?"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from opt_trt.backends.engine import EngineConfig, read_engine_config
from opt_trt.backends.tensorrt.deserialize import LastError, create_runtime, deserialize
from opt_trt.backends.tensorrt.execution import EngineRun, Turn, create_contexts, gpu_turn, set_weight_budget
from opt_trt.backends.tensorrt.library import Library, load_library, missing, version
from opt_trt.backends.tensorrt.runtime_cache import runtime_cache
from opt_trt.backends.tensorrt.slot_decoder import SlotDecoder
from opt_trt.backends.tensorrt.slots import slot_spec
from opt_trt.config.runtime_flags import RuntimeOptions, check_embedded
from opt_trt.errors import UserError, spelled
from opt_trt.plugins.cuda.gpu import Gpu, visible_gpu
from opt_trt.runtime.follow import Opening
from opt_trt.runtime.ranks import Ranks
from opt_trt.runtime.session import DecoderSession, Session

ENGINE = "rank0.engine"


@dataclass(frozen=True)
class Machine:
    """The GPU and the library that run an engine."""

    gpu: Gpu
    library: Library
    device: torch.device  # where tensors lie
    turn: Turn


def open_session(opening: Opening, ranks: Ranks) -> Session:
    """Open a session on an engine that this backend built; see `opt_trt.backends.Backend.open`."""
    config = read_engine_config(opening.engine_dir)
    check_supported(opening, config)
    decoder = open_slots(opening.engine_dir, config, opening.options, this_machine(opening.engine_dir, config))
    return DecoderSession(decoder, opening.limit, opening.scheduling, ranks)


def check_supported(opening: Opening, config: EngineConfig) -> None:
    """Refuse by name what no engine of this backend does."""
    check_embedded(opening.options, "tensorrt")
    if opening.scheduling.enable_block_reuse:
        raise UserError(
            f"{spelled('kv_cache_enable_block_reuse')} is not supported by this engine: its KV cache has one block a "
            "sequence, which is never full while it could be reused; leave it out"
        )
    if (ranks := config.pretrained_config.mapping.world_size) > 1:
        raise UserError(
            f"{opening.engine_dir} has {ranks} ranks, this backend runs one; convert with {spelled('tp_size')} 1 and "
            f"{spelled('pp_size')} 1, or build with {spelled('backend')} inductor"
        )


def this_machine(engine_dir: Path, config: EngineConfig) -> Machine:
    """Return the current GPU and the installed library, if the engine was built for them."""
    built = config.device
    gpu, capabilities = visible_gpu(), str(built.get("capabilities")).split()
    if gpu is None or gpu.capability not in capabilities:
        found = f"torch {torch.__version__} sees none here" if gpu is None else f"this is an {gpu}"
        raise UserError(
            f"{engine_dir} was built by {built.get('library')} {built.get('version')} for GPUs of compute capability "
            f"{', '.join(capabilities)}, {found}; run it on such a GPU, or build an engine for this machine with "
            f"{spelled('backend')} inductor"
        )
    library = None if missing() else load_library(built.get("library"))  # both may be installed
    if library is None or library.__name__ != built.get("library"):
        found = "no TensorRT library" if library is None else version(library)
        raise UserError(
            f"{engine_dir} was built by {built.get('library')} {built.get('version')}, found {found}; install the "
            "former, or build it again"
        )
    turn = functools.partial(gpu_turn, torch.cuda.Stream())  # type: ignore[no-untyped-call]
    return Machine(gpu, library, torch.device("cuda"), turn)


def open_slots(engine_dir: Path, config: EngineConfig, options: RuntimeOptions, machine: Machine) -> SlotDecoder:
    """Open an engine and return its decoder."""
    library, said = machine.library, LastError()
    runtime = create_runtime(library, said)
    engine = deserialize(library, runtime, said, engine_dir / ENGINE)
    set_weight_budget(engine, options)
    cache = runtime_cache(config.fingerprint(), str(machine.gpu), version(library))
    contexts = create_contexts(library, engine, options, cache, machine.turn)
    run = EngineRun(engine, contexts, cache, machine.turn, said, machine.device)
    return SlotDecoder(slot_spec(config, machine.device.type), run)
