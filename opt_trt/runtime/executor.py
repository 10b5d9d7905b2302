"""Carry out plans, on this rank and on all others: a decoder over its KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from opt_trt.runtime.plan import Copies, Plan, pack
from opt_trt.runtime.ranks import Ranks
from opt_trt.step import Decoder, StepOutputs


class Executor:
    """A decoder and the KV cache it owns nothing of: one tensor per layer, of as many blocks on every rank."""

    def __init__(self, decoder: Decoder, kv_cache: Sequence[torch.Tensor], ranks: Ranks) -> None:
        self.spec = decoder.spec
        self.decoder = decoder
        self.kv_cache = kv_cache
        self._ranks = ranks

    def run(self, plan: Plan) -> StepOutputs:
        """Copy blocks, then step the decoder; logits come without the padding of the vocabulary, which is never chosen.

        On the leader it makes all ranks do so; what others return is for nobody.
        """
        with self._ranks.step(partial(pack, plan)):
            if plan.copies:
                self._copy(plan.copies)
            outputs = self.decoder.step(plan.inputs, self.kv_cache)
        return replace(outputs, logits=outputs.logits[:, : self.spec.vocab_size])

    def _copy(self, copies: Copies) -> None:
        sources, targets = torch.tensor(copies).T
        for layer in self.kv_cache:
            layer[targets] = layer[sources]
