"""Print prompts and outputs the way TensorRT-LLM's run.py does, whole or while they are generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opt_trt.runtime.request import Request, Result, TokenEvent
from opt_trt.runtime.stopping import Stop
from opt_trt.text.output import OutputText, readable
from opt_trt.text.tokenizer import Decodes


class IdText:
    """A stand-in for a tokenizer if there is none: ids are printed as numbers."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return ` 5 6 7`: each id with a space before it, so that pieces of a stream join."""
        return "".join(f" {token_id}" for token_id in ids)

    def num_settled(self, ids: Sequence[int]) -> int:
        """See `Decodes.num_settled`."""
        return len(ids)


@dataclass(frozen=True)
class Printing:
    """The way outputs are shown; `num_sequences` requests in a row have the same prompt."""

    text: Decodes
    num_sequences: int = 1
    interval: int = 1  # new tokens that are printed together when streaming
    framed: bool = True  # with the prompt before the output, both in quotes

    def begin(self, index: int, prompt_ids: Sequence[int], beam: int = 0) -> None:
        """Print what comes before the output of the request at `index`, or of one of its beams."""
        if not self.framed:
            return
        prompt, sequence = divmod(index, self.num_sequences)
        if sequence == beam == 0:
            print(f'Input [Text {prompt}]: "{self.text.decode(prompt_ids)}"')
        which = f" Seq {sequence}" * (self.num_sequences > 1)
        print(f'Output [Text {prompt}{which} Beam {beam}]: "', end="", flush=True)

    def end(self) -> None:
        """Print what comes after an output."""
        print('"' * self.framed, flush=True)


def print_results(results: Sequence[Sequence[Result]], printing: Printing) -> None:
    """Print every prompt and its outputs: the beams of each request, or its only output."""
    for index, beams in enumerate(results):
        for beam, result in enumerate(beams):
            printing.begin(index, result.prompt_ids, beam)
            print(readable(result, printing.text), end="")
            printing.end()


class StreamPrinter:
    """A printer of outputs as they come, one prompt after the other. The final lines are those without streaming.

    The output of one prompt at a time is printed, `interval` new tokens together. Tokens of later prompts wait, and so
    does text that may be the beginning of a stop word.
    """

    def __init__(self, requests: Sequence[Request], printing: Printing) -> None:
        self._requests = requests
        self._printing = printing
        self._waiting: list[list[int]] = [[] for _ in requests]
        self._finished: dict[int, Stop | None] = {}
        self._start(0)

    def add(self, event: TokenEvent) -> None:
        """Take a token of any prompt, and print the text that is due."""
        if event.finish_reason != "end_id":
            self._waiting[event.index].append(event.token_id)
        if event.finish_reason is not None:
            self._finished[event.index] = event.stop
        while self._turn in self._finished:
            self._finish(self._finished[self._turn])
            self._start(self._turn + 1)
        if self._turn < len(self._requests) and len(self._waiting[self._turn]) >= self._printing.interval:
            self._print(self._text.push(self._take()))

    def _start(self, turn: int) -> None:
        self._turn = turn
        if turn < len(self._requests):
            self._text = OutputText(self._printing.text, self._requests[turn].stop_words)
            self._printing.begin(turn, self._requests[turn].prompt_ids)

    def _finish(self, stop: Stop | None) -> None:
        self._print(self._text.finish(self._take(), stop))
        self._printing.end()

    def _take(self) -> list[int]:
        ids, self._waiting[self._turn] = self._waiting[self._turn], []
        return ids

    def _print(self, text: str) -> None:
        print(text, end="", flush=True)
