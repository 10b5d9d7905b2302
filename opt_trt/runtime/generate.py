"""Turn requests into tokens: schedule, step the decoder, sample, until every sequence is finished."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opt_trt.runtime import log_probs
from opt_trt.runtime.batch import Batch, empty_batch, generation_inputs, mixed_inputs, num_context_logits
from opt_trt.runtime.block_pool import BlockPool
from opt_trt.runtime.request import Request, Result, TokenEvent
from opt_trt.runtime.sampling import choose
from opt_trt.runtime.scheduler import Scheduler, StepLimits, TokenSequence
from opt_trt.step import Decoder, StepInputs


class Generation:
    """One run of a list of requests over a decoder, step by step; `close` frees its blocks, finished or not."""

    def __init__(self, decoder: Decoder, kv_cache: Sequence[torch.Tensor], pool: BlockPool) -> None:
        spec = decoder.spec
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._tokens_per_block = spec.tokens_per_block
        self._vocab_size = spec.vocab_size
        self._scheduler = Scheduler(StepLimits(spec.max_batch_size, spec.max_num_tokens, spec.tokens_per_block), pool)
        self._batch = empty_batch()

    @property
    def has_work(self) -> bool:
        """Whether any request is not finished."""
        return self._scheduler.has_work

    def submit(self, index: int, request: Request) -> None:
        """Queue a request that passed `check_request`; `index` comes back with its tokens."""
        self._scheduler.submit(TokenSequence(index, request))

    def cancel(self, index: int) -> None:
        """Drop a request between two steps, finished or not; what it held is free at once."""
        self._scheduler.cancel(index)
        self._batch = self._retire(self._batch)

    def step(self) -> list[TokenSequence]:
        """Run one step; every sequence returned has one more token, the last if there is a finish reason, or failed."""
        joined = self._scheduler.admit()
        stepped = self._scheduler.running
        inputs = self._inputs(joined)
        logits = self._decoder.step(inputs, self._kv_cache)[:, : self._vocab_size]  # no padding row is ever chosen
        if any(s.request.return_context_logits for s in joined):
            logits = _take_context_logits(logits, stepped, joined)
        newest_ids = choose(logits, stepped)
        log_probs.record(logits, newest_ids, stepped)
        for row, (sequence, token_id) in enumerate(zip(stepped, newest_ids.tolist(), strict=True)):
            if sequence.error is not None:
                continue
            sequence.accept(token_id)
            if sequence.request.return_generation_logits:
                sequence.generation_logits.append(logits[row].clone())
        self._batch = self._retire(Batch(newest_ids, inputs.kv_lens, inputs.block_tables))
        return stepped

    def close(self) -> None:
        """Drop whatever is not finished."""
        self._scheduler.clear()
        self._batch = empty_batch()

    def _inputs(self, joined: Sequence[TokenSequence]) -> StepInputs:
        if joined:
            return mixed_inputs(self._batch, joined, self._tokens_per_block)
        return generation_inputs(self._batch, self._tokens_per_block)

    def _retire(self, batch: Batch) -> Batch:
        stay = self._scheduler.retire()
        if len(stay) == batch.newest_ids.shape[0]:
            return batch
        return batch.keep(stay, max((len(s.blocks) for s in self._scheduler.running), default=0))


def _take_context_logits(
    logits: torch.Tensor, stepped: Sequence[TokenSequence], joined: Sequence[TokenSequence]
) -> torch.Tensor:
    """Give joined sequences the context logits they asked for; the rows that choose a token, one per sequence."""
    first = len(stepped) - len(joined)
    last_rows = list(range(first))
    for sequence in joined:
        end = first + num_context_logits(sequence)
        last_rows.append(end - 1)
        if sequence.request.return_context_logits:
            sequence.context_logits = logits[first:end].clone()
        first = end
    return logits[last_rows]


def event_of(sequence: TokenSequence) -> TokenEvent:
    """The newest token of a sequence that was stepped."""
    newest = sequence.log_probs[-1] if sequence.log_probs else None
    return TokenEvent(sequence.index, sequence.output_ids[-1], sequence.finish_reason, sequence.stop, newest)


def result_of(sequence: TokenSequence) -> Result:
    """The answer a finished sequence stands for."""
    assert sequence.finish_reason is not None, sequence.index
    logits = sequence.generation_logits
    return Result(
        prompt_ids=sequence.request.prompt_ids,
        output_ids=tuple(sequence.output_ids),
        finish_reason=sequence.finish_reason,
        stop=sequence.stop,
        log_probs=tuple(sequence.log_probs),
        context_logits=sequence.context_logits,
        generation_logits=torch.stack(logits) if logits else None,
    )
