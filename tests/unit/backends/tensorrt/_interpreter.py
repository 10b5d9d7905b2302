"""A finished TensorRT network computed in torch: what its layers say, not what the code that added them meant.

Arithmetic is fp32, rounded to the type of each tensor. Types and shapes are compared with the network's own at every
layer, those of inputs also with the optimization profile. Layers that our networks do not have are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from opt_trt.backends.tensorrt.bindings import Tensors
from opt_trt.backends.tensorrt.inputs import Dimensions, Range

WIDE = torch.float32
AllReduce = Callable[[torch.Tensor], torch.Tensor]  # a rank's tensor → the sum of those of all ranks
CLASSES = {
    "MATRIX_MULTIPLY": "IMatrixMultiplyLayer", "KV_CACHE_UPDATE": "IKVCacheUpdateLayer", "SOFTMAX": "ISoftMaxLayer",
    "ELEMENTWISE": "IElementWiseLayer", "DIST_COLLECTIVE": "IDistCollectiveLayer",
}  # fmt: skip
TORCH = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8, "INT4": torch.int8,
    "INT32": torch.int32, "BOOL": torch.bool,
}  # fmt: skip


def _elementwise(layer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    assert (x.dtype, x.ndim) == (y.dtype, y.ndim), (layer.name, x.dtype, y.dtype, x.shape, y.shape)
    wide = (x.to(WIDE), y.to(WIDE)) if x.is_floating_point() else (x, y)
    result = {"SUM": torch.add, "PROD": torch.mul, "LESS": torch.lt, "SUB": torch.sub}[layer.op.name](*wide)
    return result if result.dtype == torch.bool else result.to(x.dtype)


def _matmul(layer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    assert (x.dtype, x.ndim) == (y.dtype, y.ndim), (layer.name, x.dtype, y.dtype, x.shape, y.shape)
    sides = [
        side.to(WIDE).transpose(-1, -2) if operation.name == "TRANSPOSE" else side.to(WIDE)
        for side, operation in ((x, layer.op0), (y, layer.op1))
    ]
    return (sides[0] @ sides[1]).to(x.dtype)


def _gather(layer: Any, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    assert layer.mode.name == "DEFAULT" and layer.num_elementwise_dims == 0, layer.name
    assert int(indices.min()) >= 0 and int(indices.max()) < x.shape[layer.axis], (layer.name, indices)
    picked = x.index_select(layer.axis, indices.flatten().long())
    return picked.unflatten(layer.axis, indices.shape) if indices.ndim != 1 else picked


def _shuffle(layer: Any, x: torch.Tensor) -> torch.Tensor:
    assert layer.zero_is_placeholder, layer.name
    x = x.permute(*tuple(layer.first_transpose)[: x.ndim])
    shape = [x.shape[axis] if length == 0 else length for axis, length in enumerate(tuple(layer.reshape_dims))]
    x = x.reshape(shape)
    return x.permute(*tuple(layer.second_transpose)[: x.ndim])


def _slice(layer: Any, x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    for axis, start, length, stride in zip(axes.tolist(), layer.start, layer.shape, layer.stride, strict=True):
        assert stride == 1, layer.name
        x = x.narrow(axis, start, length)
    return x


def _unsqueeze(layer: Any, x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _normalization(layer: Any, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    assert layer.is_v2 and layer.num_groups == 1 and x.dtype == scale.dtype == bias.dtype, layer.name
    axes = _axes(layer, x)
    wide = x.to(WIDE)
    centred = wide - wide.mean(axes, keepdim=True)
    spread = (centred.square().mean(axes, keepdim=True) + layer.epsilon).sqrt()
    return (centred / spread * scale.to(WIDE) + bias.to(WIDE)).to(x.dtype)


def _softmax(layer: Any, x: torch.Tensor) -> torch.Tensor:
    (axis,) = _axes(layer, x)
    return x.to(WIDE).softmax(axis).to(x.dtype)


def _axes(layer: Any, x: torch.Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if layer.axes >> axis & 1]


def _select(layer: Any, condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    assert condition.dtype == torch.bool and x.dtype == y.dtype, layer.name
    return torch.where(condition, x, y)


def _activation(layer: Any, x: torch.Tensor) -> torch.Tensor:
    functions = {"RELU": torch.relu, "GELU_ERF": torch.nn.functional.gelu, "TANH": torch.tanh}
    return functions[layer.type.name](x.to(WIDE)).to(x.dtype)


def _dequantize(layer: Any, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if scale.ndim == q.ndim:  # blocks of input features
        assert scale.shape[-1] == q.shape[-1], layer.name
        scale = scale.repeat_interleave(q.shape[-2] // scale.shape[-2], -2)
    else:  # a scale for each index of one axis
        scale = scale.view([-1 if axis == layer.axis else 1 for axis in range(q.ndim)])
    assert (scale > 0).all(), f"{layer.name}: the library takes positive scales only"
    return (q.to(WIDE) * scale.to(WIDE)).to(TORCH[layer.to_type.name])


def _cast(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return x.to(TORCH[layer.to_type.name])


def _append(layer: Any, cache: torch.Tensor, x: torch.Tensor, write_indices: torch.Tensor) -> torch.Tensor:
    """Write in place; rows behind the end are dropped, as the library documents."""
    assert layer.cache_mode.name == "LINEAR" and layer.update_lengths is None, layer.name
    assert cache.dtype == x.dtype and cache.shape[:2] == x.shape[:2] and cache.shape[3] == x.shape[3], layer.name
    for row, start in enumerate(write_indices.tolist()):
        assert start >= 0, (layer.name, start)
        kept = max(min(x.shape[2], cache.shape[2] - start), 0)
        cache[row, :, start : start + kept] = x[row, :, :kept]
    return cache


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "ELEMENTWISE": _elementwise, "MATRIX_MULTIPLY": _matmul, "GATHER": _gather, "SHUFFLE": _shuffle, "SLICE": _slice,
    "UNSQUEEZE": _unsqueeze, "NORMALIZATION": _normalization, "SOFTMAX": _softmax, "SELECT": _select,
    "ACTIVATION": _activation, "DEQUANTIZE": _dequantize, "CAST": _cast, "KV_CACHE_UPDATE": _append,
}  # fmt: skip


@dataclass
class _Node:
    """A layer, its attributes readable, and the names of its tensors."""

    kind: str
    layer: Any
    inputs: list[str]
    output: str


def _node(library: Any, layer: Any) -> _Node:
    kind = layer.type.name  # the next line hides it: an activation has another `type`
    layer.__class__ = getattr(library, CLASSES.get(kind, f"I{kind.title()}Layer"))
    assert layer.num_outputs == 1, layer.name
    found = [layer.get_input(i) for i in range(layer.num_inputs)]
    return _Node(kind, layer, [tensor.name for tensor in found if tensor is not None], layer.get_output(0).name)


def _in_order(nodes: list[_Node], ready: set[str]) -> list[_Node]:
    """Sort layers so that each follows those that it reads; a network lists them as they were added."""
    ordered: list[_Node] = []
    while nodes:
        later = []
        for node in nodes:
            if ready.issuperset(node.inputs):
                ordered.append(node)
                ready.add(node.output)
            else:
                later.append(node)
        assert len(later) < len(nodes), f"{later[0].layer.name} reads {later[0].inputs}, which no layer makes"
        nodes = later
    return ordered


class Interpreter:
    """The `Run` of a network that is never compiled."""

    def __init__(
        self,
        library: Any,
        network: Any,
        constants: Mapping[str, torch.Tensor],
        table: Mapping[str, tuple[torch.dtype, Dimensions]],
        profiles: Mapping[int, Mapping[str, Range]],
        all_reduce: AllReduce | None = None,
    ) -> None:
        """Read a network; `constants` have the values that it does not give back: those of bf16 and int4.

        `all_reduce` adds up a tensor over ranks.
        """
        self._functions = FUNCTIONS | {"DIST_COLLECTIVE": lambda layer, x: all_reduce(x)}
        self._network, self._table, self._profiles = network, table, profiles
        self._constants = constants  # the network computes shapes from the memory of its constants
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        _check_inputs(inputs, table)
        self._outputs = [network.get_output(i).name for i in range(network.num_outputs)]
        nodes = [_node(library, network.get_layer(i)) for i in range(network.num_layers)]
        self._nodes, self._fixed = [], {}
        for node in _in_order(nodes, {tensor.name for tensor in inputs}):
            if node.kind == "CONSTANT":
                self._fixed[node.output] = _checked(node, _constant(node, constants))
            elif self._fixed.keys() >= set(node.inputs):
                self._fixed[node.output] = self._compute(node, self._fixed)
            else:
                self._nodes.append(node)

    def __call__(self, profile: int, feeds: Tensors, caches: Tensors) -> Tensors:
        """Compute a step, see `Run`."""
        given = {**feeds, **caches}
        _check_feeds(given, self._table, self._profiles[profile])
        values = {**self._fixed, **given}
        for node in self._nodes:
            values[node.output] = self._compute(node, values)
        return {name: values[name] for name in self._outputs if name.removesuffix("_out") not in caches}

    def _compute(self, node: _Node, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return _checked(node, self._functions[node.kind](node.layer, *[values[name] for name in node.inputs]))


def _check_inputs(inputs: Sequence[Any], table: Mapping[str, tuple[torch.dtype, Dimensions]]) -> None:
    assert [tensor.name for tensor in inputs] == list(table)
    for tensor, (dtype, dimensions) in zip(inputs, table.values(), strict=True):
        names = tuple(
            tensor.get_dimension_name(axis) if length == -1 else length for axis, length in enumerate(tensor.shape)
        )
        assert (TORCH[tensor.dtype.name], names) == (dtype, dimensions), tensor.name


def _check_feeds(
    given: Mapping[str, torch.Tensor], table: Mapping[str, tuple[torch.dtype, Dimensions]], ranges: Mapping[str, Range]
) -> None:
    """Check what a GPU would refuse: types, fixed lengths, unequal lengths of one name, lengths out of the profile."""
    assert given.keys() == table.keys(), given.keys() ^ table.keys()
    found: dict[str, int] = {}
    for name, (dtype, dimensions) in table.items():
        assert given[name].dtype == dtype and given[name].ndim == len(dimensions), (name, given[name].dtype)
        for length, wanted in zip(given[name].shape, dimensions, strict=True):
            if isinstance(wanted, int):
                assert length == wanted, (name, given[name].shape, dimensions)
            else:
                assert found.setdefault(wanted, length) == length, (name, wanted, found[wanted], length)
                assert ranges[wanted][0] <= length <= ranges[wanted][2], (name, wanted, length, ranges[wanted])


def _checked(node: _Node, result: torch.Tensor) -> torch.Tensor:
    declared = node.layer.get_output(0)
    lengths = tuple(declared.shape)
    assert (TORCH[declared.dtype.name], len(lengths)) == (result.dtype, result.ndim), (node.output, declared, result)
    assert all(d in (-1, f) for d, f in zip(lengths, result.shape, strict=True)), (node.output, lengths, result.shape)
    return result


def _constant(node: _Node, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
    shape, kind = tuple(node.layer.shape), node.layer.get_output(0).dtype.name
    if kind == "INT4":  # two in a byte, the first in the low bits, two's complement
        stored = constants[node.output].flatten().to(torch.int16)
        return torch.stack((stored & 15, stored >> 4), 1).bitwise_xor_(8).sub_(8).to(torch.int8).view(shape)
    if kind == "BF16":
        return constants[node.output].view(shape)
    return torch.from_numpy(node.layer.weights.copy()).view(shape)
