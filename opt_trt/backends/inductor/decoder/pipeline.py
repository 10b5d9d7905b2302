"""Steps of a pipeline: cut into parts, so that stages compute different parts at the same time, and put together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import torch

from opt_trt.backends.inductor.decoder.rank_forward import RankForward, StageOutputs
from opt_trt.plugins.collectives.links import StageLink
from opt_trt.step import StepInputs, StepOutputs

# The fewest packed tokens of a part: with fewer, reading the weights once more costs more than waiting for a stage.
LEAST_TOKENS = 64
PARTS_PER_STAGE = 2


def micro_batches(inputs: StepInputs, stages: int, least_tokens: int = LEAST_TOKENS) -> list[StepInputs]:
    """Cut a step between sequences, into parts of about as many tokens each; return it whole if cutting does not pay.

    The parts are in the order of the step.
    """
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
    """Select the packed indices that lie in a part, and count them from the part's first token."""
    inside: torch.Tensor = token_ids[(token_ids >= tokens.start) & (token_ids < tokens.stop)] - tokens.start
    return inside


def run_stage(
    forward: RankForward, link: StageLink, parts: Sequence[StepInputs], kv_cache: Sequence[torch.Tensor]
) -> list[StageOutputs]:
    """Compute a stage's share of a step, part by part; the last stage returns outputs, other stages send them on."""
    outputs = list[StageOutputs]()
    pending = [] if link.is_first else [link.expect(len(p.input_ids), forward.hidden_size) for p in parts]
    for index, part in enumerate(map(forward.place, parts)):  # a part is placed while the one before is computed
        x = forward.embed(part) if link.is_first else link.receive(pending[index])
        x = forward.layers(x, part, kv_cache)
        if link.is_last:
            outputs.append(StageOutputs(forward.head(x, part), forward.hidden(x, part)))
        else:
            link.send(x)
    return outputs


def gather_outputs(
    forward: RankForward, link: StageLink, outputs: Sequence[StageOutputs], inputs: StepInputs
) -> StepOutputs:
    """Bring the last stage's outputs of all parts of a step to rank 0. Other ranks get some of them or no rows."""
    shapes = [(len(inputs.last_token_ids), forward.rank_logits.width(inputs))]
    if inputs.hidden_token_ids is not None:
        shapes.append((len(inputs.hidden_token_ids), forward.hidden_size))
    kinds = [[tensor for tensor in kind if tensor is not None] for kind in zip(*outputs, strict=True)]
    logits, *hidden = link.answer([torch.cat(kind) for kind in kinds if kind], shapes)
    return forward.step_outputs(StageOutputs(logits, hidden[0] if hidden else None), inputs)
