"""Greedy takes the first largest logit, and no number that is none."""

from __future__ import annotations

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.runtime.sampling import WINDOW, greedy

WIDTHS = [1, 7, WINDOW, 2 * WINDOW - 1, 2 * WINDOW, 2 * WINDOW + 1, 5 * WINDOW + 17, 50272]


@pytest.mark.parametrize("width", WIDTHS)
def test_greedy_is_argmax(width: int) -> None:
    logits = torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    assert greedy(logits).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_of_equal_logits_wins(width: int) -> None:
    logits = torch.randint(0, 3, (64, width), generator=torch.Generator().manual_seed(width)).float()
    first = [row.index(max(row)) for row in logits.tolist()]
    assert greedy(logits).tolist() == first


@pytest.mark.parametrize("position", [0, WINDOW - 1, 4 * WINDOW, 5 * WINDOW - 1, 5 * WINDOW, 5 * WINDOW + 16])
def test_every_window_is_looked_at(position: int) -> None:
    logits = torch.zeros(2, 5 * WINDOW + 17)
    logits[1, position] = 1.0
    assert greedy(logits).tolist() == [0, position]


def test_a_row_of_a_larger_tensor_will_do() -> None:
    logits = torch.arange(3.0 * 1024).view(3, 1024)[:, :700]
    assert greedy(logits).tolist() == [699] * 3


@pytest.mark.parametrize("width", [8, 50272])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_anywhere_is_named(width: int, value: float) -> None:
    logits = torch.randn(3, width)
    logits[1, width // 2] = value
    with pytest.raises(UserError, match=f"finite logits, the decoder returned {value}"):
        greedy(logits)


def test_masked_logits_are_no_error() -> None:
    assert greedy(torch.tensor([[float("-inf"), -3.0]])).tolist() == [1]
