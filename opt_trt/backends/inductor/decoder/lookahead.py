"""Steps begun before they are asked for: while the session looks at a step's tokens, the GPU computes the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import ReferenceType, ref

import torch

from opt_trt.backends.inductor.decoder.foresight import Foresight, next_step, rows_within
from opt_trt.backends.inductor.decoder.launch import Launch
from opt_trt.step import DecoderSpec, StepInputs


class Launcher(Protocol):
    """What gives the GPU a step; ids are rows of what the step `before` has chosen, where that is given."""

    def __call__(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor], before: Launch | None = None) -> Launch:
        """Launch it, and wait for nothing."""
        ...


@dataclass(frozen=True)
class Guess:
    """The step that should be asked for next, over which KV cache, and its launch if it has begun."""

    step: StepInputs
    first_layer: ReferenceType[torch.Tensor]  # the session may free it
    launch: Launch | None


class Ahead:
    """Answers steps, as far as it can from what it began.

    The next step is launched as soon as the last one is, before anybody waits for that: tokens go from one to the next
    on the GPU, and of what a step is made of nothing else is new. It is compared with what is asked for then. Rows that
    nobody asks for any more are dropped. Where one is asked for that is not there, all of it is dropped, and the step
    computed as it is: a part of it would cost as much, for each reads all weights once.

    What a dropped row wrote into the KV cache is never seen. It lies behind all tokens that its sequence has there, in
    a block that is not full and so is nobody else's; who gets the block, or goes on from there, has its own tokens
    written, or copied, behind it in the order of launches, and reads no more than those.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        self._spec = spec
        self._foresight = Foresight()
        self._guess: Guess | None = None

    def step(
        self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor], launch: Launcher
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `Launch.read` gives of the step, once the next one has begun."""
        launched, rows = self._begun(inputs, kv_cache) or (launch(inputs, kv_cache), None)
        following, early = next_step(inputs, self._spec), None
        if following is not None and self._foresight.is_good:
            early = launch(following if rows is None else replace(following, input_ids=rows), kv_cache, launched)
        joined, hidden = launched.read()
        joined = joined if rows is None else joined[rows]
        if following is not None:
            self._guess = Guess(replace(following, input_ids=joined[:, 1].long()), ref(kv_cache[0]), early)
        return joined, hidden

    def _begun(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> tuple[Launch, torch.Tensor] | None:
        """The launch that has computed the step already, and its rows there."""
        guess, self._guess = self._guess, None  # whatever happens, none is used twice
        if guess is None or guess.first_layer() is not kv_cache[0]:
            return None
        rows = rows_within(guess.step, inputs, self._spec.tokens_per_block)
        self._foresight.learn(missed=rows is None)
        return None if rows is None or guess.launch is None else (guess.launch, rows)
