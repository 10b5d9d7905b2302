"""Cut a step by its sequences, so that pipeline stages work on different parts of it at the same time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import torch

from opt_trt.plugins.collectives.links import StageLink
from opt_trt.step import StepInputs

# Packed tokens of a part at least: with fewer, streaming the weights once more costs more than waiting for a stage.
LEAST_TOKENS = 64
PARTS_PER_STAGE = 2


def micro_batches(inputs: StepInputs, stages: int, least_tokens: int = LEAST_TOKENS) -> list[StepInputs]:
    """Parts of a step, in its order and of about as many tokens; the step itself where cutting it does not pay."""
    ends = inputs.query_start.tolist()
    count = min(PARTS_PER_STAGE * stages, ends[-1] // least_tokens)
    if stages == 1 or count < 2 or len(ends) < 3:
        return [inputs]
    cuts = sorted({bisect_left(ends, ends[-1] * part / count) for part in range(count + 1)})
    return [_part(inputs, slice(*sequences), slice(*(ends[s] for s in sequences))) for sequences in pairwise(cuts)]


def _part(inputs: StepInputs, sequences: slice, tokens: slice) -> StepInputs:
    hidden = inputs.hidden_token_ids
    starts: torch.Tensor = inputs.query_start[sequences.start : sequences.stop + 1]
    return StepInputs(
        input_ids=inputs.input_ids[tokens],
        position_ids=inputs.position_ids[tokens],
        slot_mapping=inputs.slot_mapping[tokens],
        query_start=starts - tokens.start,
        kv_lens=inputs.kv_lens[sequences],
        block_tables=inputs.block_tables[sequences],
        last_token_ids=_inside(inputs.last_token_ids, tokens),
        hidden_token_ids=None if hidden is None else _inside(hidden, tokens),
        greedy=inputs.greedy,
    )


def _inside(token_ids: torch.Tensor, tokens: slice) -> torch.Tensor:
    """Those of a part, which begins at its first token."""
    inside: torch.Tensor = token_ids[(token_ids >= tokens.start) & (token_ids < tokens.stop)] - tokens.start
    return inside


Found = tuple[torch.Tensor, torch.Tensor | None]  # what was joined of the logits of a part of a step; hidden states


def joined_and_hidden(
    link: StageLink, found: Sequence[Found], inputs: StepInputs, sizes: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the last stage made of the parts of a step, where rank 0 needs it: joined logits, and hidden states if any.

    `sizes` are the numbers a row of either has.
    """
    shapes = [(len(inputs.last_token_ids), sizes[0])]
    if inputs.hidden_token_ids is not None:
        shapes.append((len(inputs.hidden_token_ids), sizes[1]))
    kinds = [[tensor for tensor in kind if tensor is not None] for kind in zip(*found, strict=True)]
    joined, *hidden = link.answer([torch.cat(kind) for kind in kinds if kind], shapes)
    return joined, hidden[0] if hidden else None
