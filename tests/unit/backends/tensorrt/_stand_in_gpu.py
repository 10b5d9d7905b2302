"""A plugin of pytest under which tests/gpu/test_tensorrt.py runs without a GPU: `-p` and the name of this module.

The GPU is a name. Engines are built as ever; then the stand-in of the library opens them, and computes by the
interpreter of the network of the checkpoint beside the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from opt_trt.backends.engine import EngineConfig
from opt_trt.backends.tensorrt import open_session
from opt_trt.backends.tensorrt.engine_shape import engine_shape
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.plugins.cuda import gpu
from tests.unit.backends.tensorrt._networks import interpreted
from tests.unit.backends.tensorrt._stand_in import STREAM, StandIn

torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *_: (8, 9)
torch.cuda.get_device_name = lambda *_: "a stand-in"


@contextmanager
def turn() -> Iterator[int]:
    yield STREAM


def this_machine(engine_dir: Path, config: EngineConfig) -> open_session.Machine:
    """Return a machine that runs nothing but this engine."""
    model, shape = config.pretrained_config, engine_shape(config.pretrained_config, config.build_config)
    library = StandIn(
        interpreted(Checkpoint(engine_dir.parent / "checkpoint"), shape), model, shape,
        content=(engine_dir / "rank0.engine").read_bytes(),
    )  # fmt: skip
    found = gpu.visible_gpu()
    assert found is not None
    return open_session.Machine(found, library, torch.device("cpu"), turn)


open_session.this_machine = this_machine
