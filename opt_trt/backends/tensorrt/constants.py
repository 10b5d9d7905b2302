"""A checkpoint's tensors as constants of a network: floating, int8 by channel, int4 by group."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from opt_trt.backends.tensorrt.library import Library
from opt_trt.backends.tensorrt.narrow_weights import HEAD, HEAD_STEP, MLP_STEP, group_size, rounded_up, store
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.weight_only import IntegerBlock, integer_blocks, table_blocks
from opt_trt.quant import ALGORITHMS
from opt_trt.quant.mode import QuantMode

TYPES = {
    torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16", torch.int8: "INT8", torch.int32: "INT32",
}  # fmt: skip
# Where the features within an MLP are, by the end of a tensor's name.
OUT_OF_MLP, INTO_MLP, FC_BIAS = "mlp.proj.weight", "mlp.fc.weight", "mlp.fc.bias"
IN_MEMORY = 1 << 20  # bytes: larger arrays that are not in the checkpoint go to a file


def data_type(library: Library, dtype: torch.dtype) -> Any:
    """Return the library's name of a dtype."""
    return getattr(library.DataType, TYPES[dtype])


class Factor(NamedTuple):
    """The second factor of a product."""

    tensor: Any
    is_transposed: bool  # `[..., out, in]`; else `[..., in, out]`


class Constants:
    """The constants of a network. The builder reads their memory until the build ends: keep this object so long.

    Arrays that the checkpoint does not hold lie in files without a name in `directory` (None: that of temporary files),
    which the system may write out instead of keeping them in memory. `OSError` if the disk is full.
    """

    def __init__(self, library: Library, network: Any, directory: Path | None = None) -> None:
        self._library, self._network, self._directory = library, network, directory
        self.kept: dict[str, torch.Tensor] = {}  # by the name of the constant; int4 as bytes

    def add(self, name: str, tensor: torch.Tensor) -> Any:
        """Add a tensor, which is not copied."""
        return self._add(name, tensor.shape, tensor.contiguous(), data_type(self._library, tensor.dtype))

    def add_quantized(
        self, name: str, blocks: Iterable[IntegerBlock], shape: tuple[int, ...], mode: QuantMode, dtype: torch.dtype
    ) -> Factor:
        """Add the integers of a weight as `shape`, which is `[..., in, out]`; they have the type `dtype` when read.

        The compiler would copy weights in another order. Scales of int4 are repeated for every group of input features:
        the library would write a weight with one scale per channel to memory, in the wide type, at every step.
        """
        *_, rows, columns = shape
        memory, scale = self._zeros(rows, columns * mode.bits // 8), torch.ones(columns, dtype=dtype)
        store(blocks, mode, memory, scale)
        kind = self._library.DataType.INT8 if mode.bits == 8 else self._library.DataType.INT4
        stored = self._add(name, shape, memory.view(torch.int8) if mode.bits == 8 else memory, kind)
        if mode.bits == 4:
            scale = scale.expand(*shape[:-2], rows // group_size(name, rows), columns)
        layer = self._network.add_dequantize(stored, self.add(f"{name}.scale", scale), data_type(self._library, dtype))
        layer.name = layer.get_output(0).name = f"{name}.wide"
        if mode.bits == 8:
            layer.axis = len(shape) - 1
        return Factor(layer.get_output(0), is_transposed=False)

    def _zeros(self, *shape: int) -> torch.Tensor:
        """Return zeros in uint8, in a file if they are many, which goes when they go."""
        if (size := math.prod(shape)) < IN_MEMORY:
            return torch.zeros(shape, dtype=torch.uint8)
        with tempfile.TemporaryFile(dir=self._directory) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # or a full disk would end the process at a write
            memory = mmap.mmap(file.fileno(), size)
        return torch.frombuffer(memory, dtype=torch.uint8).view(shape)

    def _add(self, name: str, shape: Sequence[int], tensor: torch.Tensor, kind: Any) -> Any:
        self.kept[name] = tensor
        weights = self._library.Weights(kind, tensor.data_ptr(), math.prod(shape))
        layer = self._network.add_constant(tuple(shape), weights)
        layer.name = layer.get_output(0).name = name
        return layer.get_output(0)


class ModelConstants:
    """The tensors of a rank of a checkpoint as constants, in the model's type when they are read."""

    def __init__(self, constants: Constants, checkpoint: Checkpoint, head_mode: QuantMode | None = None) -> None:
        self._constants, self._checkpoint, self._head_mode = constants, checkpoint, head_mode
        self._dtype: torch.dtype = getattr(torch, checkpoint.config.dtype)
        algorithm = checkpoint.config.quant_algo
        self._mode = None if algorithm is None else ALGORITHMS[algorithm]

    @property
    def vocabulary_size(self) -> int:
        """The number of logits of the rank."""
        return self._checkpoint.spec[HEAD].shape[0]

    def table(self, name: str) -> Any:
        """Add a table `[rows, E]`."""
        return self._constants.add(name, self._checkpoint.tensor(name))

    def vector(self, name: str, rank: int) -> Any:
        """Add a vector `[n]` as `[1, ..., n]` with `rank` axes."""
        vector = self._checkpoint.tensor(name)
        if self._mode is not None and name.endswith(FC_BIAS):
            vector = torch.nn.functional.pad(vector, (0, rounded_up(len(vector), MLP_STEP) - len(vector)))
        return self._constants.add(name, vector.view(*[1] * (rank - 1), -1))

    def linear(self, name: str) -> Factor:
        """Add the weight of a layer's product, with three axes."""
        if self._mode is None:
            return Factor(self._constants.add(name, self._checkpoint.tensor(name)[None]), is_transposed=True)
        (columns, rows), blocks = integer_blocks(self._checkpoint, name)
        rows = rounded_up(rows, MLP_STEP if name.endswith(OUT_OF_MLP) else 1)
        columns = rounded_up(columns, MLP_STEP if name.endswith(INTO_MLP) else 1)
        return self._constants.add_quantized(name, blocks, (1, rows, columns), self._mode, self._dtype)

    def head(self, vocabulary: tuple[str, Any]) -> Factor:
        """Add the head's weight, or return the constant of the vocabulary `[V, E]` if it has the same values.

        A quantized head has rows of zeros up to a multiple of `HEAD_STEP`.
        """
        weight, (table_name, table) = self._checkpoint.tensor(HEAD), vocabulary
        if self._head_mode is not None:
            shape = (weight.shape[1], rounded_up(len(weight), HEAD_STEP))
            blocks = table_blocks(weight, self._head_mode)
            return self._constants.add_quantized(HEAD, blocks, shape, self._head_mode, self._dtype)
        is_table = torch.equal(weight, self._checkpoint.tensor(table_name))
        return Factor(table if is_table else self._constants.add(HEAD, weight), is_transposed=True)
