"""Begin steps before they are asked for: while the session looks at a step's tokens, the GPU computes the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import ReferenceType, ref

import torch

from opt_trt.backends.inductor.decoder.launch import Launch
from opt_trt.backends.inductor.decoder.program_table import is_generation, replayed_rows
from opt_trt.backends.inductor.decoder.rank_forward import StageOutputs
from opt_trt.step import DRAW_COLUMNS, DecoderSpec, StepInputs

LOOKED_BACK = 16  # predictions
MOST_MISSES = 1  # misses among them; with more, the steps begun in vain may cost more than the others save
COMPARED = ("slot_mapping", "input_ids", "kv_lens")  # compared in two rows; positions follow from lengths


class LaunchStep(Protocol):
    """A function that gives the GPU a step."""

    def __call__(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor], before: Launch | None = None) -> Launch:
        """Launch a step without waiting. If `before` is given, input ids are rows of the tokens that it has chosen."""
        ...


@dataclass(frozen=True)
class Prediction:
    """The step that should be asked for next, the KV cache that it uses, and its launch if it has begun."""

    step: StepInputs
    first_layer: ReferenceType[torch.Tensor]  # the first layer of the KV cache, which the session may free
    launch: Launch | None


class HitRate:
    """The share of the last steps that were predicted right."""

    def __init__(self) -> None:
        self._missed: deque[bool] = deque(maxlen=LOOKED_BACK)

    @property
    def is_good(self) -> bool:
        """True if it pays to begin the next predicted step."""
        return sum(self._missed) <= MOST_MISSES

    def learn(self, missed: bool) -> None:
        """Record whether a prediction missed. Predictions whose step was not begun count as well."""
        self._missed.append(missed)


class Lookahead:
    """Steps that are answered, where possible, from steps that were begun before.

    The next step is launched right after the last one, before its tokens have been read: each sequence's token goes
    from one step to the next on the GPU, and nothing else in a step is new. The step that the session then asks for is
    compared with the one that was begun. Rows that are no longer wanted are dropped. If a wanted row is missing, the
    whole begun step is dropped and the wanted one is computed: a part of it would take as long, because every step
    reads all weights once.

    What a dropped row wrote into the KV cache is never read. It lies behind all tokens that its sequence has, in a
    block that is not full and therefore belongs to this sequence alone. A sequence that gets the block later, or
    continues there, has its own tokens written or copied over it by later launches, and reads no further than those.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        self._spec = spec
        self._hit_rate = HitRate()
        self._prediction: Prediction | None = None

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor], launch: LaunchStep) -> StageOutputs:
        """Return what `Launch.read` returns of the step, after the next step has begun."""
        launched, rows = self._begun(inputs, kv_cache) or (launch(inputs, kv_cache), None)
        following, early = next_step(inputs, self._spec), None
        if following is not None and self._hit_rate.is_good:
            early = launch(following if rows is None else replace(following, input_ids=rows), kv_cache, launched)
        logits, hidden = launched.read()
        logits = logits if rows is None else logits[rows]
        if following is not None:
            step = replace(following, input_ids=logits[:, 1].long())
            self._prediction = Prediction(step, ref(kv_cache[0]), early)
        return StageOutputs(logits, hidden)

    def _begun(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> tuple[Launch, torch.Tensor] | None:
        """Return the launch that has computed the step already, and the step's rows in it; None if there is none."""
        prediction, self._prediction = self._prediction, None  # none is used twice, even if this step fails
        if prediction is None or prediction.first_layer() is not kv_cache[0]:
            return None
        rows = rows_within(prediction.step, inputs, self._spec.tokens_per_block)
        self._hit_rate.learn(missed=rows is None)
        return None if rows is None or prediction.launch is None else (prediction.launch, rows)


def next_step(inputs: StepInputs, spec: DecoderSpec) -> StepInputs | None:
    """Predict the next step: each sequence brings the token that this step chooses for it.

    Input ids of the predicted step are rows of this step's tokens. The result is None if the session expects another
    step, if this step does not choose a token for each sequence, if a token has no place in the KV cache (a sequence
    gets its next block before it needs it, where possible), or if the predicted step is not one that is captured.
    """
    if not inputs.goes_on or not inputs.chooses or not _all_end(inputs):
        return None
    positions, size = inputs.kv_lens.long(), spec.tokens_per_block
    if int(positions.max()) >= min(spec.max_seq_len, inputs.block_tables.shape[1] * size):
        return None
    offsets = positions % size
    blocks = inputs.block_tables.gather(1, (positions // size).unsqueeze(1)).squeeze(1)
    if not bool((blocks + offsets).all()):  # a new block numbered 0 is the table's padding, or may be
        return None
    rows = torch.arange(len(positions) + 1)
    step = replace(
        inputs, input_ids=rows[:-1], position_ids=positions, slot_mapping=blocks * size + offsets,
        query_start=rows.int(), kv_lens=inputs.kv_lens + 1, last_token_ids=rows[:-1], draws=_next_draws(inputs.draws),
    )  # fmt: skip
    return step if replayed_rows(step) is not None else None


def rows_within(begun: StepInputs, asked: StepInputs, tokens_per_block: int) -> torch.Tensor | None:
    """Find the sequences of a step among the rows of a begun step, int64 `[S]`; None if one of them is not there.

    Two rows are equal if their tokens, the places of these and the KV cache that they read are. It does not matter
    which request a row belongs to.
    """
    if replayed_rows(asked) is None or _choice(asked) != _choice(begun):
        return None
    slots, order = begun.slot_mapping.sort()
    rows = order[torch.searchsorted(slots, asked.slot_mapping).clamp(max=len(slots) - 1)]
    pairs = [(getattr(begun, name)[rows], getattr(asked, name)) for name in COMPARED]
    if asked.draws is not None and begun.draws is not None:
        known = (DRAW_COLUMNS.filters, DRAW_COLUMNS.number)
        pairs += [(begun.draws[rows, columns], asked.draws[:, columns]) for columns in known]
    if not all(torch.equal(predicted, found) for predicted, found in pairs):
        return None
    width = -(-int(asked.kv_lens.max()) // tokens_per_block)
    differ = asked.block_tables[:, :width] != begun.block_tables[rows, :width]
    is_read = torch.arange(width) * tokens_per_block < asked.kv_lens.unsqueeze(1)
    return None if bool((differ & is_read).any()) else rows


def _next_draws(draws: torch.Tensor | None) -> torch.Tensor | None:
    """Return the same rules with the number for the next token; the number after it is not known yet."""
    if draws is None:
        return None
    filters, _, coming = (draws[:, columns] for columns in DRAW_COLUMNS)
    return torch.cat((filters, coming, coming), 1)


def _choice(inputs: StepInputs) -> tuple[bool, bool]:
    """Say how a step chooses tokens: whether it is greedy, and whether it samples."""
    return inputs.greedy, inputs.draws is not None


def _all_end(inputs: StepInputs) -> bool:
    """Say whether a step wants logits of the last token of every sequence, and of no other token."""
    if len(inputs.last_token_ids) != len(inputs.kv_lens):
        return False
    return is_generation(inputs) or bool((inputs.last_token_ids == inputs.query_start[1:] - 1).all())
