"""A checkpoint's tensors as constants of a network: floating, int8 by channel, int4 by group."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from opt_trt.backends.tensorrt.library import Library
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.weight_only import integers, quantize_table
from opt_trt.errors import UserError, spelled
from opt_trt.quant import ALGORITHMS
from opt_trt.quant.mode import QuantMode

TYPES = {
    torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16", torch.int8: "INT8", torch.int32: "INT32",
}  # fmt: skip
HEAD = "lm_head.weight"
GROUPS = (128, 64, 32, 16)  # numbers of input features that can share a scale of int4, the best first
# The compiler widens quantized weights of other sizes at every step. Features within an MLP are filled up with zeros,
# and so are the rows of a head, whose logits are cut off again.
MLP_STEP, HEAD_STEP = 16, 8
MLP_FEATURES = {"mlp.fc.weight": 0, "mlp.fc.bias": 0, "mlp.proj.weight": 1}  # the axis of these, by the end of a name


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

    def add_quantized(self, name: str, q: torch.Tensor, scale: torch.Tensor, mode: QuantMode) -> Factor:
        """Add integers `[..., out, in]`, given in int8, with scales `[out]`, whose type they have when they are read.

        They are stored as `[..., in, out]`, as the compiler wants them: it copies all others. Scales of int4 are
        repeated for every group of input features, because the library would write a weight that has one scale per
        channel to memory, in the wide type, at every step.
        """
        scale = torch.where(scale == 0, 1, scale)  # of a channel of zeros; the library does not allow the scale 0
        q = q.transpose(-1, -2)
        if mode.bits == 8:
            stored, axis = self.add(name, self._mapped(q)), q.ndim - 1
        else:
            groups = q.shape[-2] // group_size(name, q.shape[-2])
            stored, axis = self._add(name, q.shape, self._mapped(pack_int4(q)), self._library.DataType.INT4), None
            scale = scale.expand(*q.shape[:-2], groups, -1)
        layer = self._network.add_dequantize(
            stored, self.add(f"{name}.scale", scale), data_type(self._library, scale.dtype)
        )
        layer.name = layer.get_output(0).name = f"{name}.wide"
        if axis is not None:
            layer.axis = axis
        return Factor(layer.get_output(0), is_transposed=False)

    def _mapped(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor's copy in a file, which goes when the copy goes; a small tensor is returned as it is."""
        if tensor.nbytes < IN_MEMORY:
            return tensor
        with tempfile.TemporaryFile(dir=self._directory) as file:
            os.posix_fallocate(file.fileno(), 0, tensor.nbytes)  # or a full disk would end the process at a write
            memory = mmap.mmap(file.fileno(), tensor.nbytes)
        return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)

    def _add(self, name: str, shape: torch.Size, tensor: torch.Tensor, kind: Any) -> Any:
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
        vector = self._filled_mlp(name, self._checkpoint.tensor(name))
        return self._constants.add(name, vector.view(*[1] * (rank - 1), -1))

    def linear(self, name: str) -> Factor:
        """Add the weight of a layer's product, with three axes."""
        if self._mode is None:
            return Factor(self._constants.add(name, self._checkpoint.tensor(name)[None]), is_transposed=True)
        q, scale = integers(self._checkpoint, name)
        q = self._filled_mlp(name, q)
        return self._constants.add_quantized(name, q[None], filled(scale, 0, len(q)), self._mode)

    def head(self, vocabulary: tuple[str, Any]) -> Factor:
        """Add the head's weight, or return the constant of the vocabulary `[V, E]` if it has the same values.

        A quantized head has rows of zeros up to a multiple of `HEAD_STEP`.
        """
        weight, (table_name, table) = self._checkpoint.tensor(HEAD), vocabulary
        if self._head_mode is not None:
            q, scale = (filled(part, 0, HEAD_STEP) for part in quantize_table(weight, self._head_mode))
            return self._constants.add_quantized(HEAD, q, scale.to(self._dtype), self._head_mode)
        is_table = torch.equal(weight, self._checkpoint.tensor(table_name))
        return Factor(table if is_table else self._constants.add(HEAD, weight), is_transposed=True)

    def _filled_mlp(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        axis = next((axis for end, axis in MLP_FEATURES.items() if name.endswith(end)), None)
        return tensor if axis is None or self._mode is None else filled(tensor, axis, MLP_STEP)


def filled(tensor: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    """Return a tensor with zeros at the end of an axis, up to a multiple of `step`."""
    lacking = -tensor.shape[axis] % step
    zeros = torch.zeros_like(tensor.narrow(axis, 0, 1)).repeat_interleave(lacking, axis)
    return torch.cat((tensor, zeros), axis) if lacking else tensor


def group_size(name: str, in_features: int) -> int:
    """Return how many input features of an int4 weight share a scale; `UserError` if no number fits.

    There are at least two groups where that is possible: a single one would be a scale per channel again.
    """
    fitting = [group for group in GROUPS if in_features % group == 0]
    if not fitting:
        advice = f"give {spelled('lm_head_precision')} int8" if name == HEAD else "convert the model to int8"
        raise UserError(
            f"backend tensorrt: expected int4 weights whose input features are a multiple of {GROUPS[-1]}, found "
            f"{in_features} in {name}; {advice}"
        )
    return next((group for group in fitting if group < in_features), fitting[0])


def pack_int4(q: torch.Tensor) -> torch.Tensor:
    """Pack int4 values, given as int8, into bytes: two's complement, the first of two in the low bits."""
    low, high = (q & 15).to(torch.uint8).reshape(-1, 2).unbind(1)
    return low | high << 4
