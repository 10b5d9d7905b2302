"""Print prompts and outputs the way TensorRT-LLM's run.py does, whole or while they are generated."""

from __future__ import annotations

from collections.abc import Sequence

from opt_trt.runtime.request import FinishReason, TokenEvent
from opt_trt.text import Decodes, TextStream


class IdText:
    """Stands in for a tokenizer where there is none: ids are printed as numbers."""

    def decode(self, ids: Sequence[int]) -> str:
        """` 5 6 7`: each id with a space before it, so that pieces of a stream join."""
        return "".join(f" {token_id}" for token_id in ids)


def print_pair(index: int, prompt_ids: Sequence[int], output_ids: Sequence[int], text: Decodes) -> None:
    """One prompt and what followed it."""
    _begin(index, prompt_ids, text)
    print(f'{text.decode(output_ids)}"')


def without_end_id(output_ids: Sequence[int], finish_reason: FinishReason) -> Sequence[int]:
    """What is there to read: the end id is not."""
    return output_ids[:-1] if finish_reason == "end_id" else output_ids


def _begin(index: int, prompt_ids: Sequence[int], text: Decodes) -> None:
    print(f'Input [Text {index}]: "{text.decode(prompt_ids)}"')
    print(f'Output [Text {index} Beam 0]: "', end="", flush=True)


class StreamPrinter:
    """Prints outputs while they come, one prompt after the other: in the end the same lines as without streaming.

    Of the prompt whose turn it is, every `interval` new tokens appear at once; tokens of later ones wait.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], text: Decodes, interval: int) -> None:
        self._prompts = prompts
        self._text = text
        self._interval = interval
        self._waiting: list[list[int]] = [[] for _ in prompts]
        self._finished: set[int] = set()
        self._start(0)

    def add(self, event: TokenEvent) -> None:
        """Take a token of any prompt and print what is due."""
        if event.finish_reason != "end_id":
            self._waiting[event.index].append(event.token_id)
        if event.finish_reason is not None:
            self._finished.add(event.index)
        while self._turn in self._finished:
            print(self._new_text() + self._stream.flush() + '"', flush=True)
            self._start(self._turn + 1)
        if self._turn < len(self._prompts) and len(self._waiting[self._turn]) >= self._interval:
            print(self._new_text(), end="", flush=True)

    def _start(self, turn: int) -> None:
        self._turn = turn
        self._stream = TextStream(self._text)
        if turn < len(self._prompts):
            _begin(turn, self._prompts[turn], self._text)

    def _new_text(self) -> str:
        new = self._stream.push(self._waiting[self._turn])
        self._waiting[self._turn] = []
        return new
