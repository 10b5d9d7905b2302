"""Decoders for tests of the runtime: no weights, literal tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from opt_trt.step import DecoderSpec, StepInputs, StepOutputs

SPEC = DecoderSpec(
    num_layers=2,
    num_heads=1,
    head_size=1,
    vocab_size=16,
    kv_dtype=torch.float32,
    tokens_per_block=4,
    max_batch_size=4,
    max_input_len=16,
    max_seq_len=24,
    max_num_tokens=32,
    gather_context_logits=False,
    gather_generation_logits=False,
    end_id=2,
    pad_id=1,
)


def spec(**changes: Any) -> DecoderSpec:
    """Return the specification of a tiny decoder, with changes."""
    return replace(SPEC, **changes)


@dataclass
class SumDecoder:
    """`Decoder` whose next token is the sum of all tokens of a sequence, modulo the vocabulary, from the KV cache.

    It writes every token's id as the key of its slot and sums keys over the block table, so a wrong slot, block,
    length or position gives a wrong token. Positions are written as values and must come back as 0, 1, 2, …
    The hidden state of a token is the sum up to it as an angle, so sums are alike where they are close.
    """

    spec: DecoderSpec = SPEC
    steps: list[StepInputs] = field(default_factory=list)
    before_step: Callable[[StepInputs], None] = lambda inputs: None

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        self.before_step(inputs)
        self.steps.append(inputs)
        block, offset = (
            inputs.slot_mapping // self.spec.tokens_per_block,
            inputs.slot_mapping % self.spec.tokens_per_block,
        )
        for layer in kv_cache:
            layer[block, 0, 0, offset, 0] = inputs.input_ids.float()
            layer[block, 1, 0, offset, 0] = inputs.position_ids.float()
        sums = torch.zeros(inputs.input_ids.shape[0])
        for row in range(inputs.kv_lens.shape[0]):
            start, end = inputs.query_start[row : row + 2].tolist()
            table, kv_len = inputs.block_tables[row].long(), int(inputs.kv_lens[row])
            cached = kv_cache[-1][table, :, 0, :, 0].transpose(0, 1).reshape(2, -1)[:, :kv_len]  # keys | values
            assert cached[1].tolist() == list(range(kv_len)), (row, cached[1])
            for token in range(start, end):
                sums[token] = cached[0, : kv_len - (end - 1 - token)].sum()
        following = sums[inputs.last_token_ids].long() % self.spec.vocab_size
        logits = torch.nn.functional.one_hot(following, self.spec.vocab_size).float()
        wanted = inputs.hidden_token_ids
        angles = None if wanted is None else torch.stack((sums[wanted].cos(), sums[wanted].sin()), 1)
        return StepOutputs(logits, angles)


def expected_output(
    prompt: Sequence[int], max_new_tokens: int, end_id: int | None = None, vocab_size: int = 16
) -> tuple[int, ...]:
    """Return what `SumDecoder` generates after a prompt."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        ids.append(sum(ids) % vocab_size)
        if ids[-1] == end_id:
            break
    return tuple(ids[len(prompt) :])
