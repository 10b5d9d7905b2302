"""Kernels of real engines of the demo model, as the real builder lists them; no GPU is needed for the list."""

from __future__ import annotations

import pytest

from opt_trt.backends.tensorrt.bindings import GENERATION, PROMPT, cache_names, cache_output
from opt_trt.backends.tensorrt.kernel_report import judgements, kernel_lines
from opt_trt.backends.tensorrt.kernels import KernelTable, read_kernels
from tests.tensorrt.conftest import BUILDS, LAYERS, SHAPE

GOOD = [name for name in BUILDS if name != "unnamed"]
MOST_A_LAYER = {"int8": 9, "int4": 9}  # 8 for the others: int8 and int4 add a bias in a kernel of its own


@pytest.fixture
def table(logs, request) -> KernelTable:
    found = read_kernels(logs(request.param), LAYERS)
    assert found is not None
    return found


@pytest.mark.parametrize("table", GOOD, indirect=True)
def test_every_layer_of_a_generation_step_has_one_attention_kernel_and_one_that_appends(table):
    kernels = table.of(GENERATION)
    assert table.fused(GENERATION) == LAYERS
    assert all(sum(kernel.appends(layer) for kernel in kernels) == 1 for layer in range(LAYERS))
    layers = table.layers(GENERATION)
    assert [layers[place] for place, kernel in enumerate(kernels) if kernel.is_attention] == list(range(LAYERS))


@pytest.mark.parametrize("table", GOOD, indirect=True)
def test_a_generation_step_copies_no_cache(table):
    assert table.copies(GENERATION) == 0


@pytest.mark.parametrize(
    "table", [name for name in GOOD if name[:4] in ("int8", "int4") and "75" not in name], indirect=True
)
def test_integer_weights_are_read_inside_the_products_of_a_generation_step(table):
    assert table.widened(GENERATION) == 0
    narrow = [k for k in table.of(GENERATION) if any(v.dtype in ("Int8", "Int4") for v in k.constants)]
    assert len(narrow) == 4 * LAYERS and all(kernel.name.split("_myl")[1].endswith("Fc") for kernel in narrow)


@pytest.mark.parametrize("name", [name for name in GOOD if name.split()[-1] in ("80", "89", "120")])
def test_a_layer_of_a_generation_step_has_few_kernels(logs, name):
    table = read_kernels(logs(name), LAYERS)
    assert table.a_layer(GENERATION) <= MOST_A_LAYER.get(name.split()[0], 8)


@pytest.mark.parametrize("table", [name for name in GOOD if not name.startswith("fp32")], indirect=True)
def test_attention_of_prompts_is_fused_and_moves_each_cache_once(table):
    assert table.fused(PROMPT) == LAYERS
    assert table.copies(PROMPT) == 2 * LAYERS


@pytest.mark.parametrize("table", ["unnamed"], indirect=True)
def test_a_network_whose_dimensions_have_no_names_is_noticed(table):
    assert table.fused(GENERATION) == 0
    assert table.copies(GENERATION) >= 2 * LAYERS
    assert [j.count == j.wished for j in judgements(table)] == [False, False, True]
    notes = [line for line in kernel_lines(table, is_detailed=False) if line.startswith("note: ")]
    assert len(notes) == 2 and "0 layers of 4 with fused attention in generation, expected 4" in notes[0]


@pytest.mark.parametrize("table", ["fp16 80", "int4 89"], indirect=True)
def test_inputs_and_outputs_are_those_of_the_contract(table):
    bindings = {value.name: (value.dtype, value.shape) for value in table.bindings}
    cache = ("Half", (-1, 4, SHAPE.capacity, 64))
    steps = {"input_ids": (-1, -1), "position_ids": (-1, -1), "write_indices": (-1,), "wanted": (-1,)}
    assert {name: shape for name, (dtype, shape) in bindings.items() if dtype == "Int32"} == steps
    assert {bindings[name] for name in cache_names(LAYERS)} == {cache}
    assert {bindings[cache_output(name)][0] for name in cache_names(LAYERS)} == {"Half"}
    assert bindings["logits"] == ("Float", (-1, 2560)) and bindings["hidden"] == ("Half", (-1, 256))
    assert len(bindings) == len(steps) + 4 * LAYERS + 2


@pytest.mark.parametrize("table", ["int8 80"], indirect=True)
def test_the_detailed_list_names_phase_layer_and_weights_of_every_kernel(table):
    lines = kernel_lines(table, is_detailed=True)
    assert sum(line.startswith("generation ") for line in lines) == len(table.of(GENERATION)) + 1
    assert any("Fc_myl1" in line and "int8[256,768]" in line and line.split()[2] == "3" for line in lines)


def test_a_log_of_another_form_is_no_table():
    assert read_kernels([], LAYERS) is None
    assert read_kernels(["Layers:\nconv1 + relu1, tactic 7"], LAYERS) is None
    assert "unknown" in kernel_lines(None, is_detailed=True)[0]
