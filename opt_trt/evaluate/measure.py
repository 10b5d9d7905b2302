"""Run the same batches through every model, in turns, and keep its outputs and its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from opt_trt.evaluate.prompts import Sample
from opt_trt.evaluate.summarizer import Summarizer, TokenIds


@dataclass(frozen=True)
class MeasurePlan:
    """The articles in a batch, and whether texts are scored for perplexity too."""

    batch_size: int
    perplexity: bool


@dataclass
class ModelRun:
    """The outputs of one model, a row per sample; `latency_s` is the time in `generate` alone."""

    outputs: list[TokenIds] = field(default_factory=list)
    nlls: list[float] = field(default_factory=list)  # mean per text; empty unless asked for
    latency_s: float = 0.0

    @property
    def output_tokens(self) -> int:
        """The number of new tokens of all rows."""
        return sum(map(len, self.outputs))


def measure(
    summarizers: Mapping[str, Summarizer], samples: Sequence[Sample], plan: MeasurePlan, clock: Callable[[], float]
) -> dict[str, ModelRun]:
    """Give each batch to each model before the next batch, so that a slow period of the machine slows all of them."""
    measured = {name: ModelRun() for name in summarizers}
    with tqdm(total=len(samples), desc="summarize", unit="article", disable=None) as bar:
        for start in range(0, len(samples), plan.batch_size):
            prompts = [s.prompt_ids for s in samples[start : start + plan.batch_size]]
            for name, summarizer in summarizers.items():
                _measure_batch(summarizer, prompts, measured[name], clock)
            if plan.perplexity:
                for name, summarizer in summarizers.items():
                    _score_batch(summarizer, prompts, measured[name])
            bar.update(len(prompts))
    return measured


def _measure_batch(
    summarizer: Summarizer, prompts: Sequence[TokenIds], into: ModelRun, clock: Callable[[], float]
) -> None:
    began = clock()
    outputs = summarizer.generate(prompts)
    into.latency_s += clock() - began
    assert len(outputs) == len(prompts), (len(outputs), len(prompts))
    into.outputs += outputs


def _score_batch(summarizer: Summarizer, prompts: Sequence[TokenIds], into: ModelRun) -> None:
    outputs = into.outputs[-len(prompts) :]
    into.nlls += [summarizer.mean_nll(p, o) for p, o in zip(prompts, outputs, strict=True)]
