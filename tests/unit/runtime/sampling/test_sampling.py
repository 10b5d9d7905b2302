"""Greedy takes the first largest logit; chance takes every token as often as its probability says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from opt_trt.config.sampling import Sampling
from opt_trt.runtime.request import Request
from opt_trt.runtime.sampling.choose import choose, draw
from opt_trt.runtime.sampling.processors import process
from opt_trt.runtime.sequence import TokenSequence


def greedy(logits: torch.Tensor) -> torch.Tensor:
    return choose(logits, [TokenSequence(row, Request((1,), 9)) for row in range(len(logits))])


WIDTHS = [1, 7, 16, 64, 511, 513, 1297, 50272]


@pytest.mark.parametrize("width", WIDTHS)
def test_greedy_is_argmax(width: int) -> None:
    logits = torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    assert greedy(logits).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_of_equal_logits_wins(width: int) -> None:
    logits = torch.randint(0, 3, (64, width), generator=torch.Generator().manual_seed(width)).float()
    first = [row.index(max(row)) for row in logits.tolist()]
    assert greedy(logits).tolist() == first


@pytest.mark.parametrize("position", [0, 15, 16, 1279, 1280, 1296])
def test_every_place_is_looked_at(position: int) -> None:
    logits = torch.zeros(2, 1297)
    logits[1, position] = 1.0
    assert greedy(logits).tolist() == [0, position]


def test_a_row_of_a_larger_tensor_will_do() -> None:
    logits = torch.arange(3.0 * 1024).view(3, 1024)[:, :700]
    assert greedy(logits).tolist() == [699] * 3


@pytest.mark.parametrize("width", [8, 50272])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_anywhere_is_named(width: int, value: float) -> None:
    logits = torch.randn(3, width)
    rows = [sequence(index) for index in range(3)]
    plain = choose(logits, rows).tolist()
    logits[1, width // 2] = value
    assert choose(logits, rows)[[0, 2]].tolist() == plain[::2]
    assert [row.error is None for row in rows] == [True, False, True]
    assert f"prompt 1 failed: expected finite logits, the decoder returned {value}" in str(rows[1].error)


@pytest.mark.parametrize(
    "way", [{}, {"top_k": 0, "top_p": 0.9}, {"top_k": 0, "top_p": 1.0}, {"logit_bias": ((3, 1.0),)}]
)
def test_a_row_that_is_not_a_number_changes_nothing_for_rows_beside_it(way: dict[str, Any]) -> None:
    logits = torch.randn(4, 300)
    alone = [choose(logits[[row]], [sequence(random_seed=row, **way)]).item() for row in range(4)]
    for bad in (float("nan"), float("inf")):
        broken, rows = logits.clone(), [sequence(row, random_seed=row, **way) for row in range(4)]
        broken[2] = bad
        assert choose(broken, rows)[[0, 1, 3]].tolist() == [alone[0], alone[1], alone[3]]
        assert [row.error is None for row in rows] == [True, True, False, True]


def test_masked_logits_are_no_error() -> None:
    assert greedy(torch.tensor([[float("-inf"), -3.0]])).tolist() == [1]


PROMPT, OUTPUT, END = (1, 2), (3, 5, 3), 6
LOGITS = (0.1, -0.7, 2.3, 1.9, 0.4, 1.1, 0.8, -1.6, 0.0, 1.4)
DRAWS = 100_000


def sequence(index: int = 0, output: Sequence[int] = OUTPUT, **params: Any) -> TokenSequence:
    made = TokenSequence(index, Request(PROMPT, 99, END, sampling=Sampling(**params)))
    made.output_ids = list(output)
    return made


def softmax(logits: Sequence[float], ids: Sequence[int]) -> dict[int, float]:
    """Probabilities of the ids, in double precision."""
    weights = {i: math.exp(logits[i]) for i in ids}
    return {i: weight / sum(weights.values()) for i, weight in weights.items()}


def filtered(logits: Sequence[float], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> dict[int, float]:
    """The three filters by their definitions, one after the other."""
    kept = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or None]
    mass, nucleus = 0.0, []
    for i, probability in softmax(logits, kept).items():
        if mass < top_p:
            nucleus.append(i)
        mass += probability
    probabilities = softmax(logits, nucleus)
    return softmax(logits, [i for i in nucleus if probabilities[i] >= min_p * max(probabilities.values())])


def changed(changes: dict[int, float], logits: Sequence[float] = LOGITS) -> list[float]:
    return [changes.get(i, x) for i, x in enumerate(logits)]


ALL = {"top_k": 0, "top_p": 1.0}
REPEATED = changed(
    {1: -0.7 * 1.5, 2: 2.3 / 1.5, 3: 1.9 / 1.5, 5: 1.1 / 1.5}
)  # ids 1, 2 of the prompt, 3, 5 of the output
EXPECTED: list[tuple[dict[str, Any], dict[int, float]]] = [
    (ALL, filtered(LOGITS)),
    (ALL | {"temperature": 0.5}, filtered([2 * x for x in LOGITS])),
    (ALL | {"temperature": 3.0}, filtered([x / 3 for x in LOGITS])),
    ({"top_k": 3}, filtered(LOGITS, top_k=3)),
    ({"top_k": 0, "top_p": 0.6}, filtered(LOGITS, top_p=0.6)),
    (ALL | {"min_p": 0.3}, filtered(LOGITS, min_p=0.3)),
    ({"top_k": 6, "top_p": 0.8, "min_p": 0.2}, filtered(LOGITS, 6, 0.8, 0.2)),
    ({"top_k": 8, "top_p": 0.9, "temperature": 2.0}, filtered([x / 2 for x in LOGITS], 8, 0.9)),
    (ALL | {"repetition_penalty": 1.5}, filtered(REPEATED)),
    (ALL | {"presence_penalty": 0.8}, filtered(changed({3: 1.1, 5: 0.3}))),
    (ALL | {"frequency_penalty": 0.8}, filtered(changed({3: 0.3, 5: 0.3}))),
    (ALL | {"no_repeat_ngram_size": 2}, filtered(changed({5: -math.inf}))),
    (ALL | {"bad_words": ((9,), (3, 2), (5, 3))}, filtered(changed({9: -math.inf, 2: -math.inf}))),
    (ALL | {"min_length": 9}, filtered(changed({END: -math.inf}))),
    (ALL | {"logit_bias": ((7, 3.0), (2, -1.0))}, filtered(changed({7: 1.4, 2: 1.3}))),
    (
        {"repetition_penalty": 1.5, "bad_words": ((9,),), "temperature": 0.8, "top_k": 7, "top_p": 0.95, "min_p": 0.05},
        filtered([x / 0.8 for x in changed({9: -math.inf}, REPEATED)], 7, 0.95, 0.05),
    ),
]  # fmt: skip


def assert_frequencies(token_ids: Sequence[int], expected: dict[int, float]) -> None:
    """Pearson's chi-square, at most five standard deviations above its mean; an impossible token must not come."""
    counts, total = Counter(token_ids), len(token_ids)
    assert counts.keys() <= {i for i, p in expected.items() if p > 0}
    chi_square = sum((counts[i] - total * p) ** 2 / (total * p) for i, p in expected.items() if p > 0)
    freedom = sum(p > 0 for p in expected.values()) - 1
    assert chi_square <= freedom + 5 * math.sqrt(2 * freedom), (chi_square, freedom)


@pytest.mark.parametrize(("params", "expected"), EXPECTED, ids=lambda x: "+".join(x) if "top_k" in x else "")
def test_a_hundred_thousand_draws_are_distributed_as_the_definition_says(
    params: dict[str, Any], expected: dict[int, float]
) -> None:
    one = sequence(**params)
    logits = process(torch.tensor([LOGITS]), [one])
    uniforms = [one.random.random() for _ in range(DRAWS)]
    assert_frequencies(draw(logits.expand(DRAWS, -1), uniforms).tolist(), expected)


@pytest.mark.parametrize("filters", [{}, {"top_k": 6, "top_p": 0.8, "min_p": 0.2}], ids=["all", "filtered"])
@pytest.mark.parametrize("which", ["random_seed", "sequence"])
def test_neighbouring_seeds_are_as_independent_as_draws_of_one(which: str, filters: dict[str, Any]) -> None:
    sequences = [sequence(**ALL | filters | {which: number}) for number in range(10_000)]
    for _ in range(2):  # the first token of every seed, then the second
        token_ids = choose(torch.tensor([LOGITS] * len(sequences)), sequences)
        assert_frequencies(token_ids.tolist(), filtered(LOGITS, **filters))


def test_numbers_at_both_ends_find_a_token_that_is_possible() -> None:
    row = [-math.inf, 0.0, -math.inf, 1.0, -math.inf]
    almost_one = math.nextafter(1.0, 0.0)
    assert draw(torch.tensor([row, row]), [0.0, almost_one]).tolist() == [1, 3]


def tokens(sequences: Sequence[TokenSequence], steps: int = 20, width: int = 700) -> list[list[int]]:
    """Generate with logits that depend on the sequence alone."""
    for step in range(steps):
        rows = [torch.Generator().manual_seed(1000 * one.index + step) for one in sequences]
        logits = 3 * torch.stack([torch.randn(width, generator=generator) for generator in rows])
        for one, token_id in zip(sequences, choose(logits, sequences).tolist(), strict=True):
            one.output_ids.append(token_id)
    return [one.output_ids for one in sequences]


@pytest.mark.parametrize(("steps", "width"), [(20, 700), (3, 50272)])  # a single wide row is summed in other parts
def test_a_sequence_does_not_depend_on_the_batch_it_runs_in(steps: int, width: int) -> None:
    options: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.5}, *(params for params, _ in EXPECTED)]
    together = tokens([sequence(i, (), **params) for i, params in enumerate(options)], steps, width)
    alone = [tokens([sequence(i, (), **params)], steps, width)[0] for i, params in enumerate(options)]
    reverse = tokens([sequence(i, (), **params) for i, params in reversed([*enumerate(options)])], steps, width)
    assert together == alone == reverse[::-1]


def test_a_number_falls_on_one_token_among_the_largest_and_in_the_whole_row() -> None:
    params = {"top_k": 0, "top_p": 0.9, "temperature": 0.9, "min_p": 0.01}
    rows = [sequence(index, random_seed=index, **params) for index in range(300)]
    logits = 4 * torch.randn(300, 5000, generator=torch.Generator().manual_seed(3))
    uniforms = [sequence(0, random_seed=index, **params).random.random() for index in range(300)]
    assert choose(logits, rows).tolist() == draw(process(logits.clone(), rows), uniforms).tolist()


def test_the_seed_decides_and_so_does_the_sequence() -> None:
    same = [tokens([sequence(0, (), **ALL | {"random_seed": 7, "sequence": 1})])[0] for _ in range(2)]
    others = [tokens([sequence(0, (), **ALL | changes)])[0] for changes in ({"random_seed": 8}, {"sequence": 2})]
    assert same[0] == same[1] and len({*map(tuple, [same[0], *others])}) == 3


def test_greedy_rows_of_a_mixed_batch_stay_greedy() -> None:
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(1))
    rows = [sequence(0), sequence(1, temperature=100.0, **ALL), sequence(2, temperature=0, top_k=50)]
    assert choose(logits, rows)[[0, 2]].tolist() == logits[[0, 2]].argmax(-1).tolist()


def test_rows_without_options_are_not_even_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    for other_way in ("_choose_changed", "_draw_by_chance", "process"):
        monkeypatch.delattr(f"opt_trt.runtime.sampling.choose.{other_way}")
    assert choose(torch.tensor([LOGITS] * 2), [sequence(0), sequence(1)]).tolist() == [2, 2]


def test_choosing_leaves_the_logits_as_the_decoder_gave_them() -> None:
    logits = torch.tensor([LOGITS])
    choose(logits, [sequence(repetition_penalty=2.0, **ALL)])
    assert torch.equal(logits, torch.tensor([LOGITS]))


def test_a_request_that_bans_every_token_fails_and_those_beside_it_do_not() -> None:
    rows = [sequence(3, **ALL), sequence(4, bad_words=tuple((i,) for i in range(len(LOGITS)))), sequence(5)]
    alone = choose(torch.tensor([LOGITS]), [sequence(3, **ALL)]).tolist()
    token_ids = choose(torch.tensor([LOGITS] * 3), rows).tolist()
    assert [token_ids[0], token_ids[2]] == [*alone, 2]
    assert [row.finish_reason for row in rows] == [None, "failed", None]
    assert str(rows[1].error) == "prompt 4 has no token left to choose after 3 new ones; relax bad_words"
