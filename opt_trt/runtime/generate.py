"""Turn requests into tokens: schedule, step the decoder and sample, for all requests in flight at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from opt_trt.config.scheduling import Scheduling
from opt_trt.runtime.executor import Executor
from opt_trt.runtime.request import Result, TokenEvent, blamed
from opt_trt.runtime.sampling import log_probs
from opt_trt.runtime.sampling.beam import BeamSearch
from opt_trt.runtime.sampling.choose import accept_choice, choose, use_number
from opt_trt.runtime.sampling.contrastive import ContrastiveSearch
from opt_trt.runtime.scheduling.batch import split_hidden, split_logits, step_inputs
from opt_trt.runtime.scheduling.block_pool import BlockPool
from opt_trt.runtime.scheduling.scheduler import Scheduler, StepLimits
from opt_trt.runtime.sequence import Chunk, TokenSequence
from opt_trt.runtime.step_message import StepPlan
from opt_trt.step import StepOutputs


class Generation:
    """Sequences in flight over an executor; they may join and be cancelled between any two steps."""

    def __init__(self, executor: Executor, pool: BlockPool, scheduling: Scheduling) -> None:
        spec = executor.spec
        self._executor = executor
        self._copies: list[tuple[int, int]] = []  # blocks of beams to copy before the next step
        limits = StepLimits(spec.max_batch_size, spec.max_num_tokens, spec.tokens_per_block, spec.begins_early)
        self._scheduler = Scheduler(limits, pool, scheduling)

    def submit(self, sequence: TokenSequence) -> None:
        """Queue a sequence whose request passed `check_request`."""
        self._scheduler.submit(sequence)

    def cancel(self, sequence: TokenSequence) -> None:
        """Drop a sequence, finished or not, and free its blocks at once."""
        self._scheduler.cancel(sequence)

    def step(self) -> Sequence[TokenSequence]:
        """See `InFlight.step`."""
        try:
            chunks = self._scheduler.schedule()
            try:
                outputs = self._run(chunks)
            except Exception as error:
                if not chunks:
                    raise
                return self._fail(chunks, error)
            return self._continue(chunks, outputs)
        except BaseException as error:  # also Ctrl-C: the blocks must not stay taken
            self._copies = []
            for sequence in self._scheduler.clear():
                sequence.fail(error)
            raise

    def _run(self, chunks: Sequence[Chunk]) -> StepOutputs:
        spec = self._executor.spec
        goes_on = spec.begins_early and self._scheduler.goes_on(chunks)
        plan = StepPlan(step_inputs(chunks, spec, goes_on), self._copies)
        self._copies = []
        return self._executor.run(plan)

    def _fail(self, chunks: Sequence[Chunk], error: Exception) -> Sequence[TokenSequence]:
        """Fail the sequences of a step that raised, any of which may be to blame; those that wait go on."""
        self._copies = []
        for chunk in chunks:
            chunk.sequence.fail(error)
        failed = list(dict.fromkeys(chunk.sequence.leader or chunk.sequence for chunk in chunks))
        for sequence in failed:
            sequence.fail(error)
        self._scheduler.retire()
        return failed

    def _continue(self, chunks: Sequence[Chunk], outputs: StepOutputs) -> Sequence[TokenSequence]:
        """Give each sequence of a step its next token. Whatever raises for one of them fails that one alone."""
        self._scheduler.advance(chunks)
        split_hidden(outputs.hidden, chunks)
        logits, sequences = split_logits(outputs.logits, chunks)
        for chunk in chunks:
            if chunk.has_context_logits:
                log_probs.record_prompt(chunk.sequence, chunk.start)
        rows_of: dict[TokenSequence, list[int]] = {}  # the sequence that stands for a request → the request's rows
        for row, sequence in enumerate(sequences):
            rows_of.setdefault(sequence.leader or sequence, []).append(row)
        single = [rows[0] for sequence, rows in rows_of.items() if sequence.num_rows == 1]
        if single:
            chosen_from = logits if len(single) == len(sequences) else logits[single]
            _extend(chosen_from, [sequences[row] for row in single], outputs.token_ids)
        for leader, rows in rows_of.items():
            if leader.num_rows > 1:
                self._search(leader, logits[rows], [sequences[row] for row in rows])
        self._scheduler.retire()
        return [sequence for sequence in rows_of if sequence.output_ids or sequence.finish_reason]

    def _search(self, leader: TokenSequence, logits: torch.Tensor, rows: list[TokenSequence]) -> None:
        """Continue the beams or candidates of a request, given their rows of logits."""
        new_rows: list[TokenSequence] = []
        try:
            if leader.search is None:
                leader.search = (ContrastiveSearch if leader.request.sampling.penalty_alpha else BeamSearch)(leader)
            new_rows = leader.search.advance(logits, rows)
        except Exception as error:
            leader.fail(blamed(leader.index, error))
        if leader.events is not None and leader.output_ids and leader.error is None:
            leader.events.append(event_of(leader))
        if leader.finish_reason is not None:
            for row in rows:
                row.finish_reason = leader.finish_reason
            return
        self._copies += self._scheduler.replace(rows, new_rows)


def _extend(logits: torch.Tensor, sequences: Sequence[TokenSequence], token_ids: torch.Tensor | None) -> None:
    """Give each sequence the token that its row of fp32 logits chooses: `[S, V]`, or `[S, C]` of `token_ids` only."""
    newest_ids = _chosen(logits, sequences, token_ids)
    log_probs.record(logits, newest_ids, sequences)
    for row, (sequence, token_id) in enumerate(zip(sequences, newest_ids.tolist(), strict=True)):
        if sequence.error is not None:
            continue
        use_number(sequence)
        try:
            sequence.accept(token_id)
        except Exception as error:  # of a tokenizer, for example, in which stop words are looked for
            sequence.fail(blamed(sequence.index, error))
            continue
        if sequence.request.return_generation_logits:
            sequence.generation_logits.append(logits[row].clone())
        if sequence.events is not None:
            sequence.events.append(event_of(sequence))


def _chosen(logits: torch.Tensor, sequences: Sequence[TokenSequence], token_ids: torch.Tensor | None) -> torch.Tensor:
    """Return the next token of each sequence, int64 `[S]`; one for which this raises fails alone."""
    try:
        if token_ids is None:
            return choose(logits, sequences)
        if token_ids.shape[1] == 1:
            return accept_choice(logits, token_ids, sequences)
        return token_ids.gather(1, choose(logits, sequences).unsqueeze(1)).squeeze(1)
    except Exception as error:
        if len(sequences) == 1:
            sequences[0].fail(blamed(sequences[0].index, error))
            return torch.zeros(1, dtype=torch.int64)
    rows = [slice(row, row + 1) for row in range(len(sequences))]  # each by itself: it is not known which one raised
    return torch.cat([_chosen(logits[r], sequences[r], None if token_ids is None else token_ids[r]) for r in rows])


def event_of(sequence: TokenSequence) -> TokenEvent:
    """Return the newest token of a sequence that was stepped."""
    newest = sequence.log_probs[-1] if sequence.log_probs else None
    event = TokenEvent(sequence.index, sequence.output_ids[-1], sequence.finish_reason, sequence.stop, newest)
    if sequence.prompt_log_probs and len(sequence.output_ids) == 1:
        return replace(event, prompt_log_probs=tuple(sequence.prompt_log_probs))
    return event


def events_of(beam: Result) -> list[TokenEvent]:
    """Return the tokens of a finished beam as if they had come one by one."""
    explained = beam.log_probs or (None,) * len(beam.output_ids)
    events = [TokenEvent(0, i, None, None, token) for i, token in zip(beam.output_ids, explained, strict=True)]
    events[0] = replace(events[0], prompt_log_probs=beam.prompt_log_probs)
    return [*events[:-1], replace(events[-1], finish_reason=beam.finish_reason)]


def result_of(sequence: TokenSequence) -> Result:
    """Return the answer to the request of a finished sequence."""
    if not sequence.hypotheses:
        return _single_result(sequence)
    beams = tuple(replace(_single_result(h.sequence), score=h.score) for h in sequence.hypotheses)
    whole = _single_result(sequence)  # of the prompt, once
    best = replace(beams[0], context_logits=whole.context_logits, prompt_log_probs=whole.prompt_log_probs)
    return replace(best, beams=(best, *beams[1:]))


def _single_result(sequence: TokenSequence) -> Result:
    assert sequence.finish_reason is not None, sequence.index
    context, generation = sequence.context_logits, sequence.generation_logits
    return Result(
        prompt_ids=sequence.request.prompt_ids,
        output_ids=tuple(sequence.output_ids),
        finish_reason=sequence.finish_reason,
        stop=sequence.stop,
        log_probs=tuple(sequence.log_probs),
        prompt_log_probs=tuple(sequence.prompt_log_probs),
        context_logits=_joined(context) if context else None,
        generation_logits=torch.stack(generation) if generation else None,
    )


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
