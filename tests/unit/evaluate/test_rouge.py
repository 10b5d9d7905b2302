"""ROUGE: literal scores, and the aggregation of TensorRT-LLM's metric."""

from __future__ import annotations

import numpy as np
import pytest

from opt_trt.errors import UserError
from opt_trt.evaluate.rouge import ROUGE_TYPES, counts_words, score_rouge, unseen_warning


def test_one_word_of_six_missed_scores_five_sixths() -> None:
    scores = score_rouge(["the cat sat on the mat"], ["the cat lay on the mat"])
    assert scores.mid == pytest.approx({"rouge1": 500 / 6, "rouge2": 60.0, "rougeL": 500 / 6, "rougeLsum": 500 / 6})


def test_fmeasure_balances_precision_and_recall() -> None:
    # 2 of 4 predicted words are in the reference of 2 words: precision 1/2, recall 1, F 2/3
    assert score_rouge(["police arrest"], ["police arrest nobody today"]).mid["rouge1"] == pytest.approx(200 / 3)


def test_words_are_not_stemmed() -> None:
    assert score_rouge(["cats"], ["cat"]).mid["rouge1"] == 0.0


def test_rouge_lsum_takes_lines_as_sentences() -> None:
    scores = score_rouge(["a b\nc d"], ["c d\na b"])
    assert (scores.mid["rougeL"], scores.mid["rougeLsum"]) == (50.0, 100.0)


def test_an_empty_summary_scores_zero() -> None:
    assert score_rouge(["a b"], [""]).mid == dict.fromkeys(ROUGE_TYPES, 0.0)


def test_mean_is_plain() -> None:
    # F: 1, 1, 0 and 2/3 (precision 1/2, recall 1)
    scores = score_rouge(["a", "b", "c", "d"], ["a", "b", "x", "d y"])
    assert scores.mean["rouge1"] == pytest.approx(100 * (1 + 1 + 0 + 2 / 3) / 4)


def test_spread_is_the_bootstrap_interval() -> None:
    # Of three rows 1, 1, 0 a resample is all zero in 1 of 27 draws: more often than the 2.5 % the interval cuts off.
    scores = score_rouge(["a", "b", "c"], ["a", "b", "x"])
    assert (scores.low["rouge1"], scores.high["rouge1"]) == (0.0, 100.0)


def test_mid_is_the_median_of_1000_resamples_after_seed_0() -> None:
    fmeasures = np.array([1.0, 0.0, 0.0, 2 / 3, 0.5])
    generator = np.random.RandomState(0)
    means = [fmeasures[generator.choice(np.arange(5), size=5)].mean() for _ in range(1000)]
    scores = score_rouge(["a", "b", "c", "d", "e f"], ["a", "x", "x", "d y", "e y"])
    assert scores.mid["rouge1"] == pytest.approx(100 * float(np.median(means)))


def test_scores_do_not_depend_on_nor_touch_numpy_state() -> None:
    texts = ["a", "b", "c d"], ["a", "x", "c y"]
    np.random.seed(7)
    first = score_rouge(*texts)
    assert np.random.rand() == pytest.approx(0.07630828937395717)  # the first number after seed 7
    assert score_rouge(*texts) == first


def test_no_summaries_are_refused() -> None:
    with pytest.raises(UserError, match="nothing to score"):
        score_rouge([], [])


@pytest.mark.parametrize(
    ("references", "says"),
    [
        (["Мэр открыл мост"], "ROUGE counts no word in 1 of 1 references (it knows a-z and 0-9)"),
        (["a bridge", "橋", "", "7"], "ROUGE counts no word in 2 of 4 references (it knows a-z and 0-9)"),
        (["été à la plage"], "ROUGE does not see 27% of the letters of the references (it knows a-z and 0-9)"),
        (["A café, " + "word " * 99], None),
        (["The mayor opened 3 bridges."], None),
    ],
)
def test_references_that_the_metric_does_not_see_are_named(references: list[str], says: str | None) -> None:
    assert unseen_warning(references) == says
    assert all(map(counts_words, references)) == (says is None or "no word" not in says)
    if says is not None and len(references) == 1 and "no word" in says:
        assert score_rouge(references, references).mean["rouge1"] == 0.0
