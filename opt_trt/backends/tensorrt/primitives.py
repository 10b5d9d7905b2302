"""The layers of a network as functions from tensors to a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from opt_trt.backends.tensorrt.constants import Constants, data_type
from opt_trt.backends.tensorrt.library import Library

ACTIVATIONS = {"relu": "RELU", "gelu": "GELU_ERF"}  # the library's, by `hidden_act`


class Primitives:
    """Layers, each named after the part of the model that it belongs to."""

    def __init__(self, library: Library, network: Any, constants: Constants, scope: str = "") -> None:
        self._library, self._network, self._constants = library, network, constants
        self._scope = scope  # begins the names of layers, which messages of the builder have

    def within(self, scope: str) -> Primitives:
        """Return the same functions for a part of the model."""
        return Primitives(self._library, self._network, self._constants, f"{scope}.")

    def constant(self, name: str, tensor: torch.Tensor) -> Any:
        """Return a tensor of the network itself, none of the checkpoint's."""
        return self._constants.add(f"{self._scope}{name}", tensor)

    def add(self, name: str, x: Any, y: Any) -> Any:
        """Return the sum of two tensors of the same number of axes."""
        return self._elementwise(name, x, y, "SUM")

    def multiply(self, name: str, x: Any, y: Any) -> Any:
        """Return the elementwise product."""
        return self._elementwise(name, x, y, "PROD")

    def less(self, name: str, x: Any, y: Any) -> Any:
        """Return where `x` is smaller, in bool."""
        return self._elementwise(name, x, y, "LESS")

    def matmul(self, name: str, x: Any, y: Any, transpose_y: bool) -> Any:
        """Return `x @ y.T`, or `x @ y`, of the last two axes."""
        plain, transposed = self._library.MatrixOperation.NONE, self._library.MatrixOperation.TRANSPOSE
        return self._named(name, self._network.add_matrix_multiply(x, plain, y, transposed if transpose_y else plain))

    def gather(self, name: str, x: Any, indices: Any, axis: int) -> Any:
        """Return the slices of `x` along an axis that `indices`, of any shape, name."""
        return self._named(name, self._network.add_gather(x, indices, axis))

    def first_columns(self, name: str, x: Any, count: int) -> Any:
        """Return the first columns of a matrix, which may be all."""
        if x.shape[1] == count:
            return x
        layer = self._network.add_slice(x, (0,), (count,), (1,))
        layer.set_input(5, self.constant(f"{name}.axes", torch.tensor([1], dtype=torch.int32)))
        return self._named(name, layer)

    def reshape(
        self, name: str, x: Any, shape: Sequence[int], before: Sequence[int] = (), after: Sequence[int] = ()
    ) -> Any:
        """Permute axes by `before`, take another shape (0: an axis keeps its length), permute axes by `after`."""
        layer = self._network.add_shuffle(x)
        layer.reshape_dims = tuple(shape)
        if before:
            layer.first_transpose = tuple(before)
        if after:
            layer.second_transpose = tuple(after)
        return self._named(name, layer)

    def unsqueeze(self, name: str, x: Any, axes: Any) -> Any:
        """Return `x` with axes of length 1."""
        return self._named(name, self._network.add_unsqueeze(x, axes))

    def select(self, name: str, condition: Any, x: Any, y: Any) -> Any:
        """Return `x` where the condition holds, else `y`."""
        return self._named(name, self._network.add_select(condition, x, y))

    def softmax(self, name: str, x: Any, axis: int) -> Any:
        """Return the softmax along an axis."""
        layer = self._network.add_softmax(x)
        layer.axes = 1 << axis
        return self._named(name, layer)

    def activation(self, name: str, x: Any, kind: str) -> Any:
        """Return the model's activation function of every element."""
        function = getattr(self._library.ActivationType, ACTIVATIONS[kind])
        return self._named(name, self._network.add_activation(x, function))

    def layer_norm(self, name: str, x: Any, scale: Any, bias: Any, epsilon: float) -> Any:
        """Normalize the last axis."""
        layer = self._network.add_normalization_v2(x, scale, bias, 1 << (len(x.shape) - 1))
        layer.epsilon = epsilon
        return self._named(name, layer)

    def cast(self, name: str, x: Any, dtype: torch.dtype) -> Any:
        """Return `x` in a dtype, which may be its own."""
        kind = data_type(self._library, dtype)
        return x if x.dtype == kind else self._named(name, self._network.add_cast(x, kind))

    def append(self, name: str, cache: Any, x: Any, write_indices: Any) -> Any:
        """Write `x` [B, H, S, D] into a cache [B, H, C, D] from the rows `write_indices` on, in place."""
        linear = self._library.KVCacheMode.LINEAR
        return self._named(name, self._network.add_kv_cache_update(cache, x, write_indices, linear))

    def all_reduce(self, name: str, x: Any, ranks: int) -> Any:
        """Return the sum over all ranks."""
        reduce, total = self._library.CollectiveOperation.ALL_REDUCE, self._library.ReduceOperation.SUM
        layer = self._network.add_dist_collective(x, reduce, total, -1, [])
        layer.num_ranks = ranks
        return self._named(name, layer)

    def _elementwise(self, name: str, x: Any, y: Any, operation: str) -> Any:
        kind = getattr(self._library.ElementWiseOperation, operation)
        return self._named(name, self._network.add_elementwise(x, y, kind))

    def _named(self, name: str, layer: Any) -> Any:
        layer.name = layer.get_output(0).name = f"{self._scope}{name}"
        return layer.get_output(0)
