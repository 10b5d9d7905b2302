"""Fields have the types they declare: a value of another type is named, before anything runs with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from opt_trt.config.field_types import check_field_types
from opt_trt.errors import UserError


@dataclass(frozen=True)
class Fields:
    count: int = 1
    share: float = 1.0
    on: bool = False
    most: int | None = None
    names: str | Sequence[str] | None = None
    ids: Sequence[int] | None = None
    groups: Sequence[Sequence[int]] = ()
    bias: Mapping[int, float] | None = None
    other: object = None

    def __post_init__(self) -> None:
        check_field_types(self)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"count": 2.5}, "--count must be an integer, found 2.5"),
        ({"count": 2.0}, "--count must be an integer, found 2.0"),
        ({"count": True}, "--count must be an integer, found True"),
        ({"count": 10**5000}, "--count must be an integer, found one of 16610 bits"),
        ({"share": 10**5000}, "--share must be a number, found one of 16610 bits"),
        ({"share": Fraction(10**400, 3)}, "--share must be a number, found Fraction"),
        ({"ids": [10**5000]}, "--ids must be a list, each item an integer or None, found list"),
        (
            {"count": torch.tensor(2, device="meta")},
            "--count must be an integer, found tensor(..., device='meta', size=(), dtype=torch.int64)",
        ),
        ({"names": ["x" * 200, 5]}, "--names must be text or a list, each item text or None, found list"),
        ({"count": "x" * 10**6}, "--count must be an integer, found str of 1000002 characters"),
        ({"count": "2"}, "--count must be an integer, found '2'"),
        ({"count": None}, "--count must be an integer, found None"),
        ({"count": float("nan")}, "--count must be an integer, found nan"),
        ({"count": np.True_}, "--count must be an integer, found np.True_"),
        ({"count": torch.tensor(True)}, "--count must be an integer, found tensor(True)"),
        ({"count": torch.tensor(2.5)}, "--count must be an integer, found tensor(2.5000)"),
        ({"count": torch.tensor([1, 2])}, "--count must be an integer, found tensor([1, 2])"),
        ({"ids": torch.tensor(5)}, "--ids must be a list, each item an integer or None, found tensor(5)"),
        ({"share": "1"}, "--share must be a number, found '1'"),
        ({"share": True}, "--share must be a number, found True"),
        ({"share": 1j}, "--share must be a number, found 1j"),
        ({"on": 1}, "--on must be True or False, found 1"),
        ({"most": 1.5}, "--most must be an integer or None, found 1.5"),
        ({"names": [5]}, "--names must be text or a list, each item text or None, found [5]"),
        ({"ids": 5}, "--ids must be a list, each item an integer or None, found 5"),
        ({"ids": "56"}, "--ids must be a list, each item an integer or None, found '56'"),
        ({"ids": [5, 1.5]}, "--ids must be a list, each item an integer or None, found [5, 1.5]"),
        ({"groups": [5]}, "--groups must be a list, each item a list, each item an integer, found [5]"),
        ({"bias": {"5": 1}}, "--bias must be a mapping from an integer to a number or None, found {'5': 1}"),
        ({"bias": [(5, 1)]}, "--bias must be a mapping from an integer to a number or None, found [(5, 1)]"),
    ],
)
def test_a_value_of_another_type_is_named(given, says):
    with pytest.raises(UserError) as error:
        Fields(**given)
    assert str(error.value) == says


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"count": np.int64(7), "most": torch.tensor(3)}, {"count": 7, "most": 3}),
        ({"share": 2}, {"share": 2}),
        ({"share": np.float32(0.5)}, {"share": 0.5}),
        ({"share": torch.tensor(0.5)}, {"share": 0.5}),
        ({"on": np.True_}, {"on": True}),
        ({"on": torch.tensor(False)}, {"on": False}),
        ({"names": "a"}, {"names": "a"}),
        ({"names": ["a", "b"]}, {"names": ["a", "b"]}),
        ({"ids": np.array([4, 5])}, {"ids": (4, 5)}),
        ({"ids": ()}, {"ids": ()}),
        ({"groups": [[1], (2, 3)]}, {"groups": [[1], (2, 3)]}),
        ({"bias": {np.int64(5): -np.inf}}, {"bias": {5: -np.inf}}),
        ({"other": 1j}, {"other": 1j}),
    ],
)
def test_numbers_are_taken_for_what_they_are(given, expected):
    fields = Fields(**given)
    assert {name: getattr(fields, name) for name in expected} == expected
    assert all(type(getattr(fields, name)) is type(value) for name, value in expected.items())
