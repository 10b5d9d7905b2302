"""What becomes of the parts of a step at the end of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opt_trt.plugins.collectives.links import StageLink
from opt_trt.step import StepInputs

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
