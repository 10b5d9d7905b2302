"""The inputs of a network: their dimensions have names, and their lengths limits."""

from __future__ import annotations

import pytest

from opt_trt.backends.tensorrt.bindings import GENERATION, INPUT_IDS, PROMPT, WANTED, WRITE_INDICES
from opt_trt.backends.tensorrt.inputs import add_profiles, input_table
from opt_trt.backends.tensorrt.library import load_library
from opt_trt.model.config import ModelConfig
from tests.unit._engines import MODEL
from tests.unit.backends.tensorrt._networks import SHAPE, needs_library

CONFIG = ModelConfig.from_dict(MODEL, "here")  # 2 layers of 2 heads of 4
CACHE = (2, 48, 4)


def test_every_dynamic_dimension_has_a_name():
    table = input_table(CONFIG, SHAPE)
    assert [dimensions for _, dimensions in table.values()] == [
        ("batch", "tokens"), ("batch", "tokens"), ("batch",), ("wanted",), *[("batch", *CACHE)] * 4
    ]  # fmt: skip


@needs_library
@pytest.mark.parametrize(
    ("profile", "name", "shapes"),
    [
        (PROMPT, INPUT_IDS, [(1, 1), (1, 8), (1, 32)]),
        (PROMPT, WRITE_INDICES, [(1,)] * 3),
        (PROMPT, WANTED, [(1,), (1,), (32,)]),
        (PROMPT, "key_cache_0", [(1, *CACHE)] * 3),
        (GENERATION, INPUT_IDS, [(1, 1), (4, 1), (4, 1)]),
        (GENERATION, WANTED, [(1,), (4,), (4,)]),
        (GENERATION, "value_cache_1", [(1, *CACHE), (4, *CACHE), (4, *CACHE)]),
    ],
)
def test_prompts_are_one_row_of_many_tokens_and_generation_many_rows_of_one(profile, name, shapes):
    trt = load_library()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    added = []
    config = builder.create_builder_config()
    add_profiles(builder, Recorder(config, added), CONFIG, SHAPE)
    assert config.num_optimization_profiles == 2
    assert [tuple(shape) for shape in added[profile].get_shape(name)] == shapes


class Recorder:
    """A builder's configuration that keeps the profiles it is given."""

    def __init__(self, config, added):
        self._config, self._added = config, added

    def add_optimization_profile(self, profile):
        self._added.append(profile)
        assert self._config.add_optimization_profile(profile) == len(self._added) - 1
