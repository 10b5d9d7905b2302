"""A library that stands in for TensorRT at run time: it computes by a `Run` on the memory whose addresses it is given.

It is stricter than the library: a shape outside of the profile, equal dimensions that differ, a cache that does not
lie where it is written, or an address that was not given is an error.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import torch

from opt_trt.backends.tensorrt.bindings import (
    HIDDEN,
    INPUT_IDS,
    LOGITS,
    WANTED,
    EngineShape,
    Run,
    cache_output,
)
from opt_trt.backends.tensorrt.inputs import input_table, profile_ranges
from opt_trt.model.config import ModelConfig

CONTENT = b"an engine of the stand-in"
STREAM = 7  # the stream that every run must be given
NAMES = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16"}
VALIDITY = Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
BITS = IntEnum(
    "EngineInvalidityDiagnostics",
    {
        "VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4, "OLD_CUDA_RUNTIME": 8,
        "INSUFFICIENT_GPU_MEMORY": 16, "MALFORMED_ENGINE": 32, "CUDA_ERROR": 64,
    },
)  # fmt: skip


@dataclass
class StandIn:
    """The module. `compiles` says whether it is the library that compiles on the GPU, or TensorRT proper."""

    run: Run
    model: ModelConfig
    shape: EngineShape
    compiles: bool = True
    validity: Any = VALIDITY.VALID
    bits: int = 0
    streamable: int = 0
    content: bytes = CONTENT  # of the file of an engine
    fails: str = ""  # what an engine that cannot be opened reports
    contexts: dict[int, Context] = field(default_factory=dict)  # by profile
    engine: Engine | None = None
    blob: bytes = b""  # the kernels that were taken from a file
    __version__ = "1.7.1.116"
    EngineValidity, EngineInvalidityDiagnostics = VALIDITY, BITS
    DynamicShapesKernelSpecializationStrategy = Enum("Strategy", ["LAZY", "EAGER", "NONE"])
    CudaGraphStrategy = Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])

    class ILogger:
        """The base of a logger."""

        Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"], start=0)

        def __init__(self) -> None:
            pass

    def __post_init__(self) -> None:
        self.__name__ = "tensorrt_rtx" if self.compiles else "tensorrt"

    def Runtime(self, logger: Any) -> Any:
        runtime = SimpleNamespace(deserialize_cuda_engine=lambda content: self._open(logger, bytes(content)))
        if self.compiles:
            runtime.get_engine_validity = lambda header: (self.validity, self.bits)
        return runtime

    def _open(self, logger: Any, content: bytes) -> Engine | None:
        if self.fails or content != self.content:
            logger.log(self.ILogger.Severity.ERROR, self.fails or "not an engine")
            logger.log(self.ILogger.Severity.WARNING, "said later")
            return None
        self.engine = Engine(self, logger, self.streamable)
        return self.engine


@dataclass
class Engine:
    """`ICudaEngine`."""

    library: StandIn
    logger: Any
    streamable_weights_size: int
    weight_streaming_budget_v2: int | None = None

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace()
        if self.library.compiles:
            strategies = self.library.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.LAZY
            config.cuda_graph_strategy = self.library.CudaGraphStrategy.DISABLED
            config.create_runtime_cache = lambda: Kernels(self.library)
            config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, config: Any) -> Context:
        return Context(self, config)

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (-1, {LOGITS: self.library.model.vocab_size, HIDDEN: self.library.model.hidden_size}[name])

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT" if name == LOGITS else NAMES[getattr(torch, self.library.model.dtype)])


@dataclass
class Kernels:
    """`IRuntimeCache`: its content names the shapes that were compiled."""

    library: StandIn
    compiled: set[str] = field(default_factory=set)

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels "):
            return False
        self.library.blob = blob
        self.compiled |= set(blob.decode().removeprefix("kernels ").split())
        return True

    def serialize(self) -> bytes:
        return f"kernels {' '.join(sorted(self.compiled))}".encode()


class Context:
    """`IExecutionContext`."""

    def __init__(self, engine: Engine, config: Any) -> None:
        self.engine, self.config = engine, config
        self.told: Counter[str] = Counter()  # how often the address of each tensor was given
        self.rows: list[int] = []  # of each run
        self._table = input_table(engine.library.model, engine.library.shape)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        self.engine.library.contexts[profile] = self
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        ranges = profile_ranges(self.engine.library.shape)[self.profile]
        dimensions = self._table[name][1]
        allowed = [(d, d, d) if isinstance(d, int) else ranges[d] for d in dimensions]
        if len(shape) != len(allowed) or not all(a <= n <= b for n, (a, _, b) in zip(shape, allowed, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.told[name] += 1
        self._addresses[name] = address
        return name.removesuffix("_out") in {*self._table, LOGITS, HIDDEN}

    def infer_shapes(self) -> list[str]:
        lengths: dict[str, int] = {}
        for name, shape in self._shapes.items():
            for dimension, length in zip(self._table[name][1], shape, strict=True):
                if isinstance(dimension, str) and lengths.setdefault(dimension, length) != length:
                    raise RuntimeError(f"{dimension} is {length} in {name}, {lengths[dimension]} elsewhere")
        return [name for name in self._table if name not in self._shapes]

    def execute_async_v3(self, stream: int) -> bool:
        caches = [name for name in self._table if "_cache_" in name]
        lost = [name for name in caches if self._addresses.get(cache_output(name)) != self._addresses[name]]
        if lost or stream != STREAM:
            self.engine.logger.log(0, f"not in place: {lost}, or stream {stream} is not {STREAM}")
            return False
        read = {name: self._at(name, dtype, self._shapes[name]) for name, (dtype, _) in self._table.items()}
        feeds = {name: tensor for name, tensor in read.items() if name not in caches}
        self.rows.append(len(feeds[INPUT_IDS]))
        if self.engine.library.compiles:
            self.config.cache.compiled.add(f"{self.profile}:{self.rows[-1]}")
        outputs = self.engine.library.run(self.profile, feeds, {name: read[name] for name in caches})
        for name, tensor in outputs.items():
            shape = (len(feeds[WANTED]), self.engine.get_tensor_shape(name)[1])
            self._at(name, tensor.dtype, shape).copy_(tensor)
        return True

    def _at(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the tensor at the address that was given for it."""
        count = torch.Size(shape).numel() * dtype.itemsize
        memory = (ctypes.c_byte * count).from_address(self._addresses[name])
        return torch.frombuffer(memory, dtype=dtype).view(shape)
