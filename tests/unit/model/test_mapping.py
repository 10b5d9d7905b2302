"""Ranks and their coordinates, by literal values."""

from __future__ import annotations

import pytest

from opt_trt.errors import UserError, divide_exactly
from opt_trt.model.mapping import Mapping


def test_tensor_parallel_neighbours_are_consecutive():
    mapping = Mapping(8, tp_size=4, pp_size=2)
    assert [mapping.tp_rank(r) for r in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [mapping.pp_rank(r) for r in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_world_that_is_not_tp_times_pp_is_refused():
    with pytest.raises(UserError, match=r"world_size must be tp_size \* pp_size = 8, found 4"):
        Mapping(4, tp_size=4, pp_size=2)


def test_layers_that_do_not_divide_evenly_go_to_the_first_stages():
    mapping = Mapping(3, pp_size=3)
    assert [list(mapping.layers(7, stage)) for stage in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [list(mapping.layers(6, stage)) for stage in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_an_inexact_division_names_the_sizes_that_fit():
    with pytest.raises(
        UserError, match=r"heads: 12 cannot be divided into 5 equal parts; use one of 1, 2, 3, 4, 6, 12"
    ):
        divide_exactly(12, 5, "heads")
