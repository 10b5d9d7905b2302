"""Every number of tokens has its bucket, and no engine has buckets its steps never reach."""

from __future__ import annotations

import pytest

from opt_trt.plugins.cuda.buckets import BUCKETS, bound_of, bounds_for


@pytest.mark.parametrize(
    ("most", "bounds"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 4)), (5, (1, 2, 4, 8)), (64, BUCKETS), (65, (*BUCKETS, None))],
)
def test_buckets_end_where_the_largest_step_fits(most, bounds):
    assert bounds_for(most) == bounds
    assert bound_of(most, bounds) == bounds[-1]


def test_a_step_takes_the_least_bucket_it_fits():
    assert [bound_of(tokens) for tokens in (1, 2, 3, 5, 64, 65, 8192)] == [1, 2, 4, 8, 64, None, None]
