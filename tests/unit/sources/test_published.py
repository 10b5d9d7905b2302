"""The published sizes give the published numbers of parameters, and the tensors of a model determine its size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from opt_trt.errors import UserError
from opt_trt.sources.opt import HEAD, source_shapes
from opt_trt.sources.published import PUBLISHED, published_config

PARAMETERS = {  # (hidden_size, num_hidden_layers): heads, parameters
    (768, 12): (12, 125_239_296),
    (1024, 24): (16, 331_196_416),
    (2048, 24): (32, 1_315_758_080),
    (2560, 32): (32, 2_651_596_800),
    (4096, 32): (32, 6_658_473_984),
    (5120, 40): (40, 12_853_473_280),
    (7168, 48): (56, 29_974_540_288),
    (9216, 64): (72, 65_719_701_504),
    (12288, 96): (96, 174_604_468_224),
}


def test_heads_and_parameters_are_the_published_ones() -> None:
    found = {}
    for size, config in PUBLISHED.items():
        count = sum(math.prod(shape) for name, shape in source_shapes(config).items() if name != HEAD)
        found[size] = (config.num_attention_heads, count)
    assert found == PARAMETERS


def test_only_the_350m_is_post_norm_and_has_projections() -> None:
    odd = {size for size, config in PUBLISHED.items() if config.has_projections or not config.do_layer_norm_before}
    assert odd == {(1024, 24)} and PUBLISHED[1024, 24].word_embed_proj_dim == 512


@pytest.mark.parametrize("size", PARAMETERS)
def test_tensors_say_which_one_it_is(size: tuple[int, int]) -> None:
    assert published_config(source_shapes(PUBLISHED[size]), Path("m")) == PUBLISHED[size]


def test_another_size_is_named_with_the_way_out() -> None:
    shapes = source_shapes(PUBLISHED[768, 12])
    shapes = {name: shape for name, shape in shapes.items() if ".layers.11." not in name}
    with pytest.raises(
        UserError, match=r"m holds 11 layers of hidden size 768, which is no published OPT .*put the config\.json"
    ):
        published_config(shapes, Path("m"))
    with pytest.raises(UserError, match="m holds 0 layers of hidden size 0"):
        published_config({}, Path("m"))
