"""Every number the report shows for one model, from what it wrote and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opt_trt.evaluate.measure import Measured
from opt_trt.evaluate.perplexity import perplexity
from opt_trt.evaluate.rouge import ROUGE_TYPES, score_rouge


@dataclass(frozen=True)
class Scores:
    """One model's summaries (row order) and its numbers: `values` is keyed as in `summary.json`.

    ROUGE in percent, times in seconds; `perplexity` is there only when it was asked for: the mean over texts.
    """

    title: str
    summaries: tuple[str, ...]
    values: dict[str, float]


def score(title: str, measured: Measured, summaries: Sequence[str], references: Sequence[str]) -> Scores:
    """Score what one model wrote against the references."""
    rouge = score_rouge(references, summaries)
    values = {t: rouge.mid[t] for t in ROUGE_TYPES}
    values |= {f"{t}_mean": rouge.mean[t] for t in ROUGE_TYPES}
    values |= {"rouge1_low": rouge.low["rouge1"], "rouge1_high": rouge.high["rouge1"]}
    if measured.nlls:
        values["perplexity"] = sum(map(perplexity, measured.nlls)) / len(measured.nlls)
    values |= {
        "latency_s": measured.latency_s,
        "output_tokens": measured.output_tokens,
        "tokens_per_s": measured.output_tokens / measured.latency_s,
        "summaries_per_s": len(summaries) / measured.latency_s,
    }
    return Scores(title, tuple(summaries), values)
