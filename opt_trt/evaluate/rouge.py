"""Compute ROUGE of summaries against references, aggregated as in TensorRT-LLM's metric, and as a plain mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from opt_trt.errors import UserError
from opt_trt.host.extras import missing_extra

try:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import BootstrapAggregator
except ModuleNotFoundError as error:
    raise missing_extra(error, "eval") from error

WORD = re.compile("[a-z0-9]")  # what the metric counts; all other characters separate words
UNSEEN_SHARE = 0.01  # of the letters and digits of the references; above it, scores say little
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
METRIC_SEED = 0


@dataclass(frozen=True)
class RougeScores:
    """F-measures in percent by type: bootstrap median (`mid`), plain mean, and 95 % interval (`low`, `high`)."""

    mid: dict[str, float]
    mean: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


def score_rouge(references: Sequence[str], summaries: Sequence[str]) -> RougeScores:
    """Score summaries against their references, without stemming; `rougeLsum` takes each line as a sentence."""
    if not references:
        raise UserError("nothing to score: no summaries were made; check the dataset and --min_input_length")
    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=False)
    pairs = tqdm(list(zip(references, summaries, strict=True)), desc="score", disable=None, delay=2, leave=False)
    rows = [scorer.score(reference, summary) for reference, summary in pairs]
    aggregator = BootstrapAggregator()
    for row in rows:
        aggregator.add_scores(row)
    with _seeded_numpy(METRIC_SEED):
        aggregate = aggregator.aggregate()
    return RougeScores(
        mid={t: 100 * float(aggregate[t].mid.fmeasure) for t in ROUGE_TYPES},
        mean={t: 100 * float(np.mean([row[t].fmeasure for row in rows])) for t in ROUGE_TYPES},
        low={t: 100 * float(aggregate[t].low.fmeasure) for t in ROUGE_TYPES},
        high={t: 100 * float(aggregate[t].high.fmeasure) for t in ROUGE_TYPES},
    )


def counts_words(text: str) -> bool:
    """Return whether the metric sees a word in a text."""
    return WORD.search(text.lower()) is not None


def unseen_warning(references: Sequence[str]) -> str | None:
    """Return a line on what the metric leaves out of the references: all of some, or many letters; None if little."""
    blind = sum(not counts_words(reference) for reference in references)
    if blind:
        return f"ROUGE counts no word in {blind} of {len(references)} references (it knows a-z and 0-9)"
    letters = [letter for reference in references for letter in reference.lower() if letter.isalnum()]
    unseen = sum(WORD.match(letter) is None for letter in letters) / max(1, len(letters))
    if unseen < UNSEEN_SHARE:
        return None
    return f"ROUGE does not see {unseen:.0%} of the letters of the references (it knows a-z and 0-9)"


@contextmanager
def _seeded_numpy(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which the aggregator uses, and restore its state after the block."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
