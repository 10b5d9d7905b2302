"""Single wrong edits of a network, each of which must change its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from opt_trt.backends.tensorrt.library import load_library
from tests.unit.backends.tensorrt._interpreter import CLASSES
from tests.unit.backends.tensorrt._networks import (
    interpreted,
    make_checkpoint,
    needs_library,
    reference_model,
    save_model,
    worst_error,
)

pytestmark = needs_library

NOTICED = 1e-3  # a hundred times what fp32 allows, see test_network.py
FIRST = "transformer.layers.0"


class Editor:
    """The layers of a finished network by name."""

    def __init__(self, network: Any) -> None:
        self.trt, self.network = load_library(), network
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        self._layers = {layer.name: layer for layer in layers}
        self._kept: list[Any] = []

    def layer(self, name: str) -> Any:
        layer = self._layers[name]
        layer.__class__ = getattr(self.trt, CLASSES.get(layer.type.name, f"I{layer.type.name.title()}Layer"))
        return layer

    def output(self, name: str) -> Any:
        return self._layers[name].get_output(0)

    def fill(self, name: str, value: float) -> None:
        """Give a constant another value."""
        layer = self.layer(name)
        self._kept.append(np.full_like(layer.weights, value))
        layer.weights = self._kept[-1]

    def shift(self, name: str, index: int, axes: int) -> None:
        """Add 1 to an input of a layer."""
        self._kept.append(np.ones([1] * axes, np.int32))
        one = self.network.add_constant([1] * axes, self._kept[-1]).get_output(0)
        moved = self.network.add_elementwise(self.layer(name).get_input(index), one, self.trt.ElementWiseOperation.SUM)
        self.layer(name).set_input(index, moved.get_output(0))

    def exchange(self, name: str, first: int, second: int) -> None:
        """Exchange two inputs of a layer."""
        layer = self.layer(name)
        tensors = layer.get_input(first), layer.get_input(second)
        layer.set_input(first, tensors[1])
        layer.set_input(second, tensors[0])


def _set(name: str, attribute: str, value: Callable[[Any], Any]) -> Callable[[Editor], None]:
    return lambda edit: setattr(edit.layer(name), attribute, value(edit.trt))


def _other_heads(edit: Editor) -> None:
    """Deal the features of queries out to the heads in turn."""
    layer = edit.layer(f"{FIRST}.attention.query.heads")
    heads, head_size = tuple(layer.reshape_dims)[2:]
    layer.reshape_dims = (0, 0, head_size, heads)
    layer.second_transpose = (0, 3, 1, 2)


def _exchange_parts(first: int, second: int) -> Callable[[Editor], None]:
    def edit_network(edit: Editor) -> None:
        edit.fill(f"shared.part_{first}", second)
        edit.fill(f"shared.part_{second}", first)

    return edit_network


EDITS: dict[str, Callable[[Editor], None]] = {
    "queries are not scaled": lambda edit: edit.fill("shared.query_scale", 1.0),
    "a key too many is seen": lambda edit: edit.fill("shared.one", 2),
    "a key too few is seen": lambda edit: edit.fill("shared.one", 0),
    "a masked key counts": lambda edit: edit.fill("shared.masked", -1.0),
    "the mask is upside down": lambda edit: edit.exchange(f"{FIRST}.attention.masked", 1, 2),
    "softmax is over tokens": _set(f"{FIRST}.attention.weights", "axes", lambda trt: 1 << 2),
    "queries and keys are exchanged": _exchange_parts(0, 1),
    "keys and values are exchanged": _exchange_parts(1, 2),
    "heads take other features": _other_heads,
    "rows of a cache are written one late": lambda edit: edit.shift("value_cache_1_out", 2, 1),
    "scores are of values": lambda edit: edit.layer(f"{FIRST}.attention.scores").set_input(
        1, edit.output("value_cache_0_out")
    ),
    "positions begin at 1": lambda edit: edit.shift("embedding.positions", 1, 2),
    "positions are not added": lambda edit: edit.layer("embedding.sum").set_input(1, edit.output("embedding.tokens")),
    "the norm has another epsilon": _set(f"{FIRST}.input_layernorm", "epsilon", lambda trt: 1e-2),
    "scale and bias of a norm are exchanged": lambda edit: edit.exchange(f"{FIRST}.post_layernorm", 1, 2),
    "a norm is left out": lambda edit: edit.layer("head.product").set_input(0, edit.output("head.wanted")),
    "a weight is transposed": _set(f"{FIRST}.attention.dense.product", "op1", lambda trt: trt.MatrixOperation.NONE),
    "a bias is subtracted": _set(f"{FIRST}.mlp.fc.biased", "op", lambda trt: trt.ElementWiseOperation.SUB),
    "the activation is another": _set(f"{FIRST}.mlp.activation", "type", lambda trt: trt.ActivationType.TANH),
    "the residual is the product": lambda edit: edit.layer(f"{FIRST}.attention.dense.residual").set_input(
        1, edit.output(f"{FIRST}.attention.dense.biased")
    ),
    "the first token is always wanted": lambda edit: edit.layer("head.wanted").set_input(
        1, edit.output("shared.part_0")
    ),
}


@pytest.fixture(scope="module")
def checkpoint_and_model(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("mutations")
    model_dir = save_model(root / "model")
    return make_checkpoint(model_dir, root / "checkpoint", "float32"), reference_model(model_dir, "float32")


@pytest.mark.parametrize("name", EDITS)
def test_a_wrong_network_has_wrong_logits(name, checkpoint_and_model):
    checkpoint, model = checkpoint_and_model
    editors = []

    def edit(network: Any) -> None:
        editors.append(Editor(network))
        EDITS[name](editors[-1])

    error = worst_error(interpreted(checkpoint, edit=edit), checkpoint.config, model)
    print(name, error)
    assert error > NOTICED
