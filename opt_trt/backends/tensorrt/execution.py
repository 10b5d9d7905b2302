"""Run an engine on a GPU: two execution contexts, one a profile, over the memory of torch's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from opt_trt.backends.tensorrt.bindings import (
    GENERATION,
    HIDDEN,
    INPUT_IDS,
    LOGITS,
    PROMPT,
    WANTED,
    Tensors,
    cache_output,
)
from opt_trt.backends.tensorrt.deserialize import LastError
from opt_trt.backends.tensorrt.library import Library, version
from opt_trt.backends.tensorrt.runtime_cache import RuntimeCache
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.errors import UserError, spelled

# Kernels are compiled for the shapes of generation, which are few. Every length of a prompt is another shape: prompts
# run kernels that take any length.
SPECIALIZED = {PROMPT: "NONE", GENERATION: "EAGER"}
TYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}
Turn = Callable[[], AbstractContextManager[int]]  # a block whose work comes after earlier work; gives a CUDA stream


def set_weight_budget(engine: Any, options: RuntimeOptions) -> None:
    """Keep the wanted share of the weights on the GPU; the others are read from the host's memory at every step."""
    streamable = engine.streamable_weights_size
    if options.gpu_weights_percent < 1 and not streamable:
        raise UserError(
            f"{spelled('gpu_weights_percent')} needs an engine whose weights can stay in the host's memory; build it "
            f"with {spelled('weight_streaming')}"
        )
    if streamable:
        engine.weight_streaming_budget_v2 = int(options.gpu_weights_percent * streamable)


def create_contexts(
    library: Library, engine: Any, options: RuntimeOptions, cache: RuntimeCache, turn: Turn
) -> dict[int, Any]:
    """Return an execution context for each profile, by profile."""
    contexts = {}
    for profile in (PROMPT, GENERATION):
        config = engine.create_runtime_config()
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):  # the library compiles on the GPU
            strategies = library.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, SPECIALIZED[profile])
        if options.cuda_graph_mode and profile == GENERATION:
            _replay_graphs(library, config)
        cache.attach(config)
        context = engine.create_execution_context(config)
        if context is None:
            raise UserError(
                "the GPU has no memory left for the activations of this engine; end other programs on this GPU, or "
                f"build with a smaller {spelled('max_input_len')}"
            )
        with turn() as stream:
            context.set_optimization_profile_async(profile, stream)
        contexts[profile] = context
    return contexts


def _replay_graphs(library: Library, config: Any) -> None:
    """Have the library capture generation steps as CUDA graphs, one for each shape, and replay them."""
    if not hasattr(config, "cuda_graph_strategy"):
        raise UserError(
            f"{spelled('cuda_graph_mode')} needs a library that captures graphs, {version(library)} captures none; "
            "leave it out"
        )
    config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE


@contextmanager
def gpu_turn(stream: torch.cuda.Stream) -> Iterator[int]:
    """Let a block's work on `stream` come after the work of torch's current stream, and further work after it.

    An engine that runs on the default stream makes the library wait for the whole GPU.
    """
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    yield stream.cuda_stream
    current.wait_stream(stream)


class EngineRun:
    """`Run` of an engine on a GPU.

    Outputs of generation lie in memory that the next run of generation overwrites: the addresses of a captured graph
    must stay. Caches are written where they lie.
    """

    def __init__(
        self, engine: Any, contexts: Mapping[int, Any], cache: RuntimeCache, turn: Turn, said: LastError,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._engine = engine  # contexts do not keep it alive
        self._contexts = {profile: Bindings(context) for profile, context in contexts.items()}
        self._cache, self._turn, self._said, self._device = cache, turn, said, device
        self._outputs = {name: self._output(name) for name in (LOGITS, HIDDEN)}
        self._generation: dict[int, dict[str, torch.Tensor]] = {}  # by rows
        self._seen: set[tuple[int, int]] = set()  # profiles and rows for which kernels were compiled

    def __call__(self, profile: int, feeds: Tensors, caches: Tensors) -> Tensors:
        """See `Run`."""
        bindings = self._contexts[profile]
        outputs = self._memory(profile, len(feeds[WANTED]))
        bindings.set_inputs(feeds)
        bindings.set_inputs(caches)
        bindings.set_outputs(outputs)
        bindings.set_outputs({cache_output(name): cache for name, cache in caches.items()})
        with self._turn() as stream:
            bindings.execute(stream, self._said)
        self._keep_kernels(profile, len(feeds[INPUT_IDS]))
        return outputs

    def _output(self, name: str) -> tuple[int, torch.dtype]:
        """Return the width and the type of an output."""
        return self._engine.get_tensor_shape(name)[-1], TYPES[self._engine.get_tensor_dtype(name).name]

    def _memory(self, profile: int, rows: int) -> dict[str, torch.Tensor]:
        """Return memory for the outputs of `rows` tokens; runs of generation with as many rows have the same."""
        if profile == PROMPT:
            return self._empty(rows)
        if rows not in self._generation:
            self._generation[rows] = self._empty(rows)
        return self._generation[rows]

    def _empty(self, rows: int) -> dict[str, torch.Tensor]:
        return {
            name: torch.empty(rows, width, dtype=dtype, device=self._device)
            for name, (width, dtype) in self._outputs.items()
        }

    def _keep_kernels(self, profile: int, rows: int) -> None:
        """Store what the library compiled for the first run of so many rows."""
        if (profile, rows) not in self._seen:
            self._seen.add((profile, rows))
            self._cache.save()


class Bindings:
    """The addresses and shapes that a context was given; only changes are told to it, each of which takes some µs."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_inputs(self, tensors: Tensors) -> None:
        """Let the context read these tensors."""
        for name, tensor in tensors.items():
            shape = tuple(tensor.shape)
            if self._shapes.get(name) != shape:
                if not self._context.set_input_shape(name, shape):
                    raise RuntimeError(f"the engine does not take {name} {list(shape)}")
                self._shapes[name] = shape
        self.set_outputs(tensors)

    def set_outputs(self, tensors: Tensors) -> None:
        """Let the context write to these tensors."""
        for name, tensor in tensors.items():
            assert tensor.is_contiguous(), name
            if self._addresses.get(name) != (address := tensor.data_ptr()):
                if not self._context.set_tensor_address(name, address):
                    raise RuntimeError(f"the engine does not take {name} at address {address:#x}")
                self._addresses[name] = address

    def execute(self, stream: int, said: LastError) -> None:
        """Run the context on a CUDA stream."""
        if missing := self._context.infer_shapes():
            raise RuntimeError(f"the engine lacks {', '.join(missing)}")
        if not self._context.execute_async_v3(stream):
            raise RuntimeError(f"the engine failed: {said.text}")
