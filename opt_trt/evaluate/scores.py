"""Compute every number that the report shows for one model, from its outputs and its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opt_trt.evaluate.measure import ModelRun
from opt_trt.evaluate.perplexity import perplexity
from opt_trt.evaluate.rouge import ROUGE_TYPES, score_rouge


@dataclass(frozen=True)
class Scores:
    """One model's summaries, in the order of the rows, and its numbers by their names in `summary.json`.

    ROUGE is in percent, times are in seconds. `perplexity`, the mean over texts, is there only if it was asked for.
    """

    title: str
    summaries: tuple[str, ...]
    values: dict[str, float]


def score(title: str, run: ModelRun, summaries: Sequence[str], references: Sequence[str]) -> Scores:
    """Score the summaries of one model against the references."""
    rouge = score_rouge(references, summaries)
    values = {t: rouge.mid[t] for t in ROUGE_TYPES}
    values |= {f"{t}_mean": rouge.mean[t] for t in ROUGE_TYPES}
    values |= {"rouge1_low": rouge.low["rouge1"], "rouge1_high": rouge.high["rouge1"]}
    if run.nlls:
        values["perplexity"] = sum(map(perplexity, run.nlls)) / len(run.nlls)
    values |= {
        "latency_s": run.latency_s,
        "output_tokens": run.output_tokens,
        "tokens_per_s": run.output_tokens / run.latency_s,
        "summaries_per_s": len(summaries) / run.latency_s,
    }
    return Scores(title, tuple(summaries), values)
