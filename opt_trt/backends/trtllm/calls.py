"""Group requests into calls of a runner's `generate`. The prompts of a call share all options but their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from opt_trt.backends.trtllm.keywords import PYTHON, SAMPLING, sampling_arguments
from opt_trt.backends.trtllm.runner import Runner
from opt_trt.runtime.request import Request
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.step import DecoderSpec

NO_END = -1  # an end id that no token has
Words = Sequence[Sequence[int]]


@dataclass(frozen=True)
class CallRow:
    """A prompt and the sequences that continue it, which differ only in their random numbers."""

    sequences: tuple[TokenSequence, ...]

    @property
    def request(self) -> Request:
        """The request of the first sequence; those of the others are alike."""
        return self.sequences[0].request

    @property
    def shared(self) -> tuple[object, ...]:
        """The options that all rows of a call must share."""
        sampling = replace(self.request.sampling, bad_words=(), sequence=0)
        words = (bool(stop_words(self.request)), bool(self.request.sampling.bad_words))
        what = (self.request.max_new_tokens, self.request.end_ids, self.request.return_generation_logits)
        return (sampling, len(self.sequences), *what, *words)

    @property
    def is_alone(self) -> bool:
        """True if the row needs a call of its own: context logits of prompts of different lengths come shifted."""
        return self.request.return_context_logits

    @property
    def is_whole(self) -> bool:
        """True if the row needs the complete output at once, because it asks for more than ids."""
        request, sampling = self.request, self.request.sampling
        logits = request.return_context_logits or request.return_generation_logits
        return logits or sampling.num_beams > 1 or sampling.log_probs is not None

    @property
    def is_watched(self) -> bool:
        """True if the tokens of any sequence are waited for one by one."""
        return any(sequence.is_watched for sequence in self.sequences)


def next_rows(queue: Sequence[TokenSequence], most: int) -> list[CallRow]:
    """Return the rows of the next call: the first of the queue, and others that share its options, `most` in all."""
    rows = _rows(queue)
    first = rows[0]
    if first.is_alone:
        return [first]
    fitting = [row for row in rows if row.shared == first.shared and not row.is_alone]
    return fitting[:most]


def _rows(queue: Sequence[TokenSequence]) -> list[CallRow]:
    """Group sequences by prompt; those of one prompt follow one another in the queue."""
    rows: list[CallRow] = []
    for sequence in queue:
        if rows and sequence.request.sampling.sequence > 0 and _alike(rows[-1].request, sequence.request):
            rows[-1] = CallRow((*rows[-1].sequences, sequence))
        else:
            rows.append(CallRow((sequence,)))
    return rows


def _alike(one: Request, other: Request) -> bool:
    def bare(request: Request) -> Request:
        return replace(request, sampling=replace(request.sampling, sequence=0), return_context_logits=False)

    return bare(one) == bare(other)


def arguments(rows: Sequence[CallRow], runner: Runner, spec: DecoderSpec, streaming: bool) -> dict[str, Any]:
    """Return keywords of `generate` for a call, which returns a dictionary of tensors, or an iterator of them."""
    request, count = rows[0].request, len(rows[0].sequences)
    given: dict[str, Any] = {
        "batch_input_ids": [torch.tensor(row.request.prompt_ids, dtype=torch.int32) for row in rows],
        "max_new_tokens": request.max_new_tokens,
        "end_id": NO_END if request.end_id is None else request.end_id,
        "pad_id": spec.pad_id,
        "stop_words_list": _lists([stop_words(row.request) for row in rows]),
        "bad_words_list": _lists([row.request.sampling.bad_words for row in rows]),
        "return_dict": True,
        "output_sequence_lengths": True,
        "output_generation_logits": request.return_generation_logits,
        "streaming": streaming,
    }
    if runner.kind != PYTHON:
        given["output_cum_log_probs"] = request.sampling.num_beams > 1 or request.sampling.log_probs is not None
    if count > 1:
        given[str(SAMPLING["sequence"].of(runner.kind, runner.release))] = count
    return given | sampling_arguments(request.sampling, runner.kind, runner.release) | dict(runner.each_call)


def stop_words(request: Request) -> Words:
    """Return the stop words a runner looks for. Others, and all with a least length, are found in its output."""
    if request.sampling.min_length:
        return ()
    further = [(end_id,) for end_id in request.further_end_ids]  # a runner takes one end id
    words = request.stop_words
    return further if words is None else (*further, *words.ids, *words.spellings)


def _lists(words: Sequence[Words]) -> list[list[list[int]]] | None:
    return [[list(word) for word in each] for each in words] if any(words) else None
