"""Beam search by transformers, and how its outputs are compared."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import OPTForCausalLM

from opt_trt.runtime.request import Request, Result

EARLY_STOPPING = {0: False, 1: True, 2: "never"}
Ids = tuple[int, ...]


def transformers_beams(oracle: OPTForCausalLM, request: Request) -> list[tuple[Ids, float]]:
    """All outputs of a request, best first, with their scores."""
    sampling = request.sampling
    with torch.inference_mode():
        out = oracle.generate(
            torch.tensor([request.prompt_ids]), attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
            max_new_tokens=request.max_new_tokens, eos_token_id=list(request.end_ids) or None, pad_token_id=1,
            do_sample=False,
            num_beams=sampling.num_beams, num_return_sequences=sampling.num_beams,
            length_penalty=sampling.length_penalty, early_stopping=EARLY_STOPPING[sampling.early_stopping],
            repetition_penalty=sampling.repetition_penalty, no_repeat_ngram_size=sampling.no_repeat_ngram_size,
            min_new_tokens=sampling.min_length or None, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    rows = [row[len(request.prompt_ids) :].tolist() for row in out.sequences]
    ends = [next((n for n, i in enumerate(row, start=1) if i in request.end_ids), len(row)) for row in rows]
    return [(tuple(r[:n]), s) for r, n, s in zip(rows, ends, out.sequences_scores.tolist(), strict=True)]


def assert_equal(result: Result, oracle: list[tuple[Ids, float]]) -> None:
    assert [beam.score for beam in result.beams] == pytest.approx([score for _, score in oracle], abs=1e-4)  # fp32 sums
    scores = [score for _, score in oracle]
    gap = min((a - b for a, b in pairwise(scores)), default=1.0)
    assert gap < 1e-4 or [beam.output_ids for beam in result.beams] == [ids for ids, _ in oracle]
