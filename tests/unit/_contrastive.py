"""Contrastive search by its definition, over transformers' logits and hidden states; slow: nothing is cached."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import cosine_similarity
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    OPTForCausalLM,
    RepetitionPenaltyLogitsProcessor,
)

from opt_trt.runtime.request import Request

TIE = 1e-4  # scores (or logits at the end of the candidates) closer than this may swap between two orders of summation


class ContrastiveOutput(NamedTuple):
    """New ids, and the margin by which each of them was chosen."""

    ids: list[int]
    gaps: list[float]


@torch.inference_mode()
def contrastive_search(model: OPTForCausalLM, request: Request) -> ContrastiveOutput:
    """Return the ids that contrastive search answers a request with."""
    alpha, k = request.sampling.penalty_alpha, request.sampling.top_k
    ids, found, process = list(request.prompt_ids), ContrastiveOutput([], []), processors(request)
    while len(found.ids) < request.max_new_tokens and (not found.ids or found.ids[-1] != request.end_id):
        [logits], _ = forward(model, [ids])
        logits = process(torch.tensor([ids]), logits[-1:])[0]
        best = logits.topk(k + 1)
        candidates = best.indices[:k].tolist()
        _, hidden = forward(model, [[*ids, candidate] for candidate in candidates])
        scores = []
        for candidate, states in zip(candidates, hidden, strict=True):
            likeness = cosine_similarity(states[-1:], states[:-1]).max().item()
            allowed = logits[candidate] > -torch.inf
            p = logits.softmax(-1)[candidate].item()
            scores.append((1 - alpha) * p - alpha * likeness if allowed else -torch.inf)
        first, second = torch.tensor(scores).topk(2).values.tolist()
        found.gaps.append(min(first - second, (best.values[-2] - best.values[-1]).nan_to_num(1.0).item()))
        found.ids.append(candidates[scores.index(max(scores))])
        ids.append(found.ids[-1])
    return found


def forward(model: OPTForCausalLM, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits `[R, T, V]`, and hidden states `[R, T, E]` before the head, or before the projection if any."""
    inputs: list[torch.Tensor] = []
    last = model.model.decoder.project_out or model.lm_head
    handle = last.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        out = model(torch.tensor(rows), use_cache=False, output_hidden_states=True)
    finally:
        handle.remove()
    assert last is not model.lm_head or torch.equal(inputs[0], out.hidden_states[-1])
    return out.logits, inputs[0]


def processors(request: Request) -> LogitsProcessorList:
    """Return penalties and bans of transformers."""
    sampling, length = request.sampling, len(request.prompt_ids)
    made = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram_size:
        made.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    if sampling.bad_words:
        made.append(NoBadWordsLogitsProcessor([list(word) for word in sampling.bad_words]))
    if sampling.min_length:
        made.append(MinNewTokensLengthLogitsProcessor(length, sampling.min_length, request.end_id))
    return made


def assert_same_or_tie(output_ids: tuple[int, ...], found: ContrastiveOutput) -> None:
    """Check that ids are equal, or equal up to a token that was a tie."""
    first = next((i for i, (a, b) in enumerate(zip(output_ids, found.ids, strict=False)) if a != b), None)
    if first is None:
        assert len(output_ids) == len(found.ids)
    else:
        assert found.gaps[first] < TIE, f"token {first}: {output_ids[first]} instead of {found.ids[first]}"
