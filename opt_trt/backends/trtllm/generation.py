"""Requests in flight over a runner: one call of `generate` at a time, whose tokens are handed out step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from opt_trt.backends.trtllm.call_sequence import CallSequence
from opt_trt.backends.trtllm.calls import CallRow, arguments, next_rows
from opt_trt.backends.trtllm.keywords import CPP
from opt_trt.backends.trtllm.runner import Runner, first_line
from opt_trt.backends.trtllm.runner_outputs import Outputs
from opt_trt.errors import UserError, spelled
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.step import DecoderSpec

Answer = TypeVar("Answer")
Generate = Callable[[dict[str, Any]], Iterator[Mapping[str, Any]]]  # makes a call; yields its output as it grows


class RunnerGeneration:
    """An `InFlight`. Requests that come while a call runs wait, and share the next call.

    A call cannot be cancelled: a cancelled sequence is forgotten, and the call goes on for the others. `can_stream`
    says whether tokens may come one by one; otherwise they come together.
    """

    def __init__(self, runner: Runner, spec: DecoderSpec, generate: Generate, can_stream: bool) -> None:
        self._runner, self._spec, self._generate, self._can_stream = runner, spec, generate, can_stream
        self._queue: list[TokenSequence] = []
        self._running: list[CallSequence] = []
        self._outputs: Iterator[Mapping[str, Any]] | None = None
        self._is_stream = self._is_broken = False

    def submit(self, sequence: TokenSequence) -> None:
        """Queue a sequence."""
        self._queue.append(sequence)

    def cancel(self, sequence: TokenSequence) -> None:
        """Drop a sequence, waiting or not."""
        self._queue = [waiting for waiting in self._queue if waiting is not sequence]
        self._running = [one for one in self._running if one.sequence is not sequence]

    def step(self) -> Sequence[TokenSequence]:
        """See `InFlight.step`. It takes as long as the runner needs for the next token, or for a whole call."""
        try:
            return self._step()
        except BaseException as error:  # also Ctrl-C: no caller may wait for ever
            for sequence in (*self._queue, *(one.sequence for one in self._running)):
                sequence.fail(error)
            goes_on = not isinstance(error, Exception) or (self._is_stream and self._outputs is not None)
            self._is_broken |= goes_on and self._runner.kind == CPP
            self._queue, self._running, self._outputs = [], [], None
            raise

    def _step(self) -> Sequence[TokenSequence]:
        if not self._running:
            self._begin()
        while not any(one.is_due for one in self._running):
            self._receive()
        due = [one for one in self._running if one.is_due]
        for one in due:
            one.advance()
        self._running = [one for one in self._running if one.sequence.finish_reason is None]
        return [one.sequence for one in due]

    def _begin(self) -> None:
        """Start the next call after the previous one has ended: the runner has room for one call."""
        if self._is_broken:  # the executor would give the answers of that call to the next one
            raise UserError("a call broke off, and TensorRT-LLM goes on with it; start again, or open the engine again")
        while self._outputs is not None:
            self._receive()
        rows = next_rows(self._queue, self._spec.max_batch_size)
        taken = {sequence for row in rows for sequence in row.sequences}
        self._queue = [sequence for sequence in self._queue if sequence not in taken]
        self._running = [CallSequence(s, i, j) for i, row in enumerate(rows) for j, s in enumerate(row.sequences)]
        self._is_stream = self._streams(rows)
        given = arguments(rows, self._runner, self._spec, self._is_stream)
        self._outputs = _answer(lambda: self._generate(given))
        self._last: Outputs | None = None

    def _streams(self, rows: Sequence[CallRow]) -> bool:
        wanted = any(row.is_watched for row in rows) and not any(row.is_whole for row in rows)
        return wanted and self._can_stream

    def _receive(self) -> None:
        """Take the next part of the running call's output, or its end."""
        outputs = self._outputs
        assert outputs is not None
        tensors = _answer(lambda: next(outputs, None))
        if tensors is not None:
            self._last = Outputs(tensors, self._spec.vocab_size)
            for one in self._running:
                one.take(self._last)
            if self._is_stream:
                return
            next(outputs, None)  # ends the iterator, and with it the call
        self._outputs = None
        for one in self._running:
            assert self._last is not None
            one.finish(self._last)


def _answer(call: Callable[[], Answer]) -> Answer:
    """Return the runner's answer; turn its errors into a `UserError` of one line."""
    try:
        return call()
    except (RuntimeError, AssertionError) as error:
        where = f"{spelled('log_level')} verbose shows where"
        raise UserError(f"TensorRT-LLM failed: {first_line(error)}; {where}") from error
