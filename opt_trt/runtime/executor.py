"""Run the plan of a step on all ranks: a decoder over its KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from opt_trt.errors import UserError
from opt_trt.runtime.ranks import Ranks
from opt_trt.runtime.step_message import Copies, StepPlan, pack
from opt_trt.step import Decoder, StepOutputs

CLOSED = "the engine is closed: open it again"


class Executor:
    """A runner of plans: a decoder and its KV cache, one tensor per layer. All ranks have equally many blocks."""

    def __init__(self, decoder: Decoder, kv_cache: Sequence[torch.Tensor], ranks: Ranks) -> None:
        self.spec = decoder.spec
        self.decoder = decoder
        self.kv_cache = kv_cache
        self._ranks = ranks
        self._is_closed = False

    def run(self, plan: StepPlan) -> StepOutputs:
        """Copy blocks, then step the decoder. Logits come without the padding of the vocabulary, which is never chosen.

        On the leader, this makes all ranks do the same; only the leader's outputs are used. `UserError` once closed.
        """
        if self._is_closed:  # before the other ranks get the message: they no longer know the session
            raise UserError(CLOSED)
        kv_cache = self.kv_cache  # a finalizer may close it meanwhile, but the ranks finish the step together
        with self._ranks.step(partial(pack, plan)):
            if plan.copies:
                _copy(plan.copies, kv_cache)
            outputs = self.decoder.step(plan.inputs, kv_cache)
        is_padded = outputs.logits.shape[1] > self.spec.vocab_size
        return replace(outputs, logits=outputs.logits[:, : self.spec.vocab_size]) if is_padded else outputs

    def close(self) -> None:
        """Free the KV cache on all ranks. No plan can be run after that."""
        self._is_closed, self.kv_cache = True, ()
        self._ranks.close()


def _copy(copies: Copies, kv_cache: Sequence[torch.Tensor]) -> None:
    sources, targets = torch.tensor(copies, device=kv_cache[0].device).T  # once for all layers
    for layer in kv_cache:
        layer[targets] = layer[sources]
