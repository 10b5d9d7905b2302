"""The kernels of a finished engine, read from the builder's log: a proof that needs no GPU.

The log is no interface. TensorRT-RTX 1.7 prints, with detailed profiling, one message `Layers:` that lists every
kernel. `read_kernels` returns None for any other text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from opt_trt.backends.tensorrt.bindings import (
    GENERATION,
    INPUT_IDS,
    POSITION_IDS,
    PROMPT,
    WANTED,
    WRITE_INDICES,
    cache_names,
    cache_output,
)  # fmt: skip

LAYERS_MESSAGE = "Layers:"
ROW = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName"
)
VALUE = re.compile(r"{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\], .*?Datatype: (?P<dtype>\w+),")
BINDING = re.compile(
    r"Name: (?P<name>\S+), IOMode: (?P<mode>\w+), DataType: (?P<dtype>\w+), Dimensions: \[(?P<shape>[-\d,]*)\]"
)
PROFILE = re.compile(r"_myl(\d+)(_\d+)?$")  # the end of a kernel's name: its profile, and its place there
OF_PROFILE = re.compile(r" \[profile \d+\]")  # the mark that names of tensors carry in every profile but the first
NO_KERNELS = ("shape_call", "signal", "wait")  # what computes sizes on the CPU, and what orders streams
ATTENTION = "_mha"  # part of the names of fused attention kernels
STEP_INPUTS = frozenset((INPUT_IDS, POSITION_IDS, WRITE_INDICES))
NARROW = ("Int8", "Int4")
ACTIVATIONS, WEIGHTS = "Total Activation Memory: ", "Total Weights Memory: "  # … bytes; the first once a profile


@dataclass(frozen=True)
class Value:
    """A tensor beside a kernel: -1 in its shape is a size that varies."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Kernel:
    """One kernel of one profile, with what it reads and writes."""

    name: str
    profile: int
    inputs: tuple[Value, ...]
    constants: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def is_attention(self) -> bool:
        """True if it computes scores, softmax and sum in one go."""
        return ATTENTION in self.name

    @property
    def widens(self) -> bool:
        """True if it writes whole weights in a wider type: nothing that it writes depends on the tokens."""
        narrow = any(value.dtype in NARROW and len(value.shape) > 1 for value in self.constants)
        return narrow and all(-1 not in value.shape for value in self.outputs)

    def reads_only(self, names: frozenset[str]) -> bool:
        """Return True if it reads some of these tensors, and constants, and nothing else."""
        return bool(self.inputs) and {value.name for value in self.inputs} <= names

    def appends(self, layer: int) -> bool:
        """Return True if it writes new keys into the cache of a layer."""
        return cache_output(f"key_cache_{layer}") in {value.name for value in self.outputs}

    def copies(self, caches: frozenset[str]) -> bool:
        """Return True if it reads a whole cache, is no attention, and writes as many rows elsewhere."""
        read = {length for value in self.inputs if value.name in caches for length in value.shape[2:3]}
        written = {length for value in self.outputs if value.name not in caches for length in value.shape}
        return not self.is_attention and bool(read & written)


@dataclass(frozen=True)
class KernelTable:
    """All kernels of an engine of `num_layers`, its inputs and outputs, and the memory that it needs."""

    num_layers: int
    kernels: tuple[Kernel, ...]
    bindings: tuple[Value, ...]
    activation_bytes: tuple[int, ...]  # by profile
    weight_bytes: int

    def of(self, profile: int) -> list[Kernel]:
        """Return the kernels of a profile in the order in which they run."""
        return [kernel for kernel in self.kernels if kernel.profile == profile]

    def fused(self, profile: int) -> int:
        """Return the number of layers whose attention is one kernel."""
        return sum(kernel.is_attention for kernel in self.of(profile))

    def copies(self, profile: int) -> int:
        """Return the number of kernels that copy a cache. In prompts each layer moves its keys and values once."""
        names = cache_names(self.num_layers)
        caches = frozenset((*names, *map(cache_output, names)))
        return sum(kernel.copies(caches) for kernel in self.of(profile))

    def widened(self, profile: int) -> int:
        """Return the number of kernels that write weights in a wider type, at every step."""
        return sum(kernel.widens for kernel in self.of(profile))

    def layers(self, profile: int) -> dict[int, int]:
        """Return the layer of every kernel of a profile by its place.

        A layer begins with the product that makes its queries, keys and values. Kernels before and behind all layers
        are left out, and those between them that read inputs alone: they run once for all layers.
        """
        kernels = self.of(profile)
        starts = [start for layer in range(self.num_layers) for start in _starts(kernels, layer)]
        ends = [*starts[1:], _end(kernels)]
        ranges = enumerate(zip(starts, ends, strict=True))
        shared = {place for place, kernel in enumerate(kernels) if kernel.reads_only(STEP_INPUTS)}
        return {place: layer for layer, (start, end) in ranges for place in range(start, end) if place not in shared}

    def a_layer(self, profile: int) -> int:
        """Return the most kernels that one layer has."""
        return max(Counter(self.layers(profile).values()).values(), default=0)


def read_kernels(messages: Sequence[str], num_layers: int) -> KernelTable | None:
    """Read the log of a build; None if this library prints it in another form."""
    text = next((message for message in messages if message.startswith(LAYERS_MESSAGE)), "")
    listed, _, io = text.removeprefix(LAYERS_MESSAGE).partition("I/O Tensors:")
    lines = [line for line in listed.splitlines() if line.strip()]
    rows = [ROW.match(line) for line in lines]
    weights = _numbers(messages, WEIGHTS)
    if not lines or not all(rows) or not weights:
        return None
    kernels = tuple(kernel for row in rows if row and row["kind"] not in NO_KERNELS and (kernel := _kernel(row)))
    activations = tuple(_numbers(messages, ACTIVATIONS))
    if {kernel.profile for kernel in kernels} != {PROMPT, GENERATION} or len(activations) != 2:
        return None
    return KernelTable(num_layers, kernels, tuple(map(_value, BINDING.finditer(io))), activations, weights[0])


def _starts(kernels: Sequence[Kernel], layer: int) -> list[int]:
    """Return the place of the kernel from which the one that appends a layer's keys has them; none if none appends."""
    for place, kernel in enumerate(kernels):
        if kernel.appends(layer):
            read = {value.name for value in kernel.inputs}
            return [max((i for i in range(place) if read & {v.name for v in kernels[i].outputs}), default=place)]
    return []


def _end(kernels: Sequence[Kernel]) -> int:
    """Return the place of the first kernel behind the layers: it chooses the tokens whose logits are wanted."""
    wanted = (place for place, kernel in enumerate(kernels) if WANTED in {value.name for value in kernel.inputs})
    return next(wanted, len(kernels))


def _kernel(row: re.Match[str]) -> Kernel | None:
    profile = PROFILE.search(row["name"])
    parts = (tuple(map(_value, VALUE.finditer(row[part]))) for part in ("inputs", "constants", "outputs"))
    return Kernel(row["name"], int(profile[1]), *parts) if profile else None


def _value(found: re.Match[str]) -> Value:
    shape = tuple(int(length) for length in found["shape"].split(",") if length)
    return Value(OF_PROFILE.sub("", found["name"]), shape, found["dtype"])


def _numbers(messages: Sequence[str], label: str) -> list[int]:
    return [
        int(number)
        for m in messages
        if (number := m.removeprefix(label).removesuffix(" bytes")) != m and number.isdigit()
    ]
