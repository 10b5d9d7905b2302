"""Collect the outputs of prompts in the caller's thread, from updates that the worker's thread sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

from opt_trt.api.outputs import PartialOutput, RequestMetrics, RequestOutput
from opt_trt.api.prompt_requests import PromptRequests
from opt_trt.errors import UserError
from opt_trt.runtime.generate import event_of, events_of, result_of
from opt_trt.runtime.request import Request, RequestFailed, TokenEvent
from opt_trt.runtime.sequence import TokenSequence


class OutputUpdate(NamedTuple):
    """The next tokens of an output, or the error that ended it."""

    position: int  # of the output among those of all prompts
    content: Sequence[TokenEvent] | Exception
    times: tuple[float, float]  # of the first and the last of the tokens


Send = Callable[[OutputUpdate], object]


@dataclass(eq=False)
class OutputListener:
    """A `Listener` that sends updates to another thread: one for each token, or one for a whole output.

    Beams are sent as whole outputs, because the best ones are known at the end only.
    """

    position: int  # that of the request's first output
    num_beams: int
    send: Send
    whole: bool
    _events: list[TokenEvent] = field(default_factory=list)
    _began: float | None = None  # the time of the first of these

    def advanced(self, sequence: TokenSequence) -> None:
        """See `Listener.advanced`."""
        if sequence.request.sampling.num_beams > 1:
            if sequence.finish_reason is not None:
                for beam, result in enumerate(result_of(sequence).beams[: self.num_beams]):
                    self._send(beam, events_of(result))
            return
        self._events.append(event_of(sequence))
        self._began = self._began or time.time()
        if not self.whole or sequence.finish_reason is not None:
            events, self._events = self._events, []
            self._send(0, events)

    def failed(self, error: Exception) -> None:
        """See `Listener.failed`."""
        self._send(0, error)

    def _send(self, beam: int, content: Sequence[TokenEvent] | Exception) -> None:
        now = time.time()
        self.send(OutputUpdate(self.position + beam, content, (self._began or now, now)))
        self._began = None


def token_ids(update: OutputUpdate) -> list[int]:
    """Return the tokens of an update."""
    return [] if isinstance(update.content, Exception) else [event.token_id for event in update.content]


def with_listeners(prompts: Sequence[PromptRequests], send: Send, whole: bool) -> list[tuple[Request, OutputListener]]:
    """Pair every request with a listener of its outputs, whose positions count the outputs of all prompts."""
    sizes = [(request, prompt.num_beams) for prompt in prompts for request in prompt.requests]
    starts = accumulate((size for _, size in sizes), initial=0)
    return [
        (request, OutputListener(start, size, send, whole))
        for (request, size), start in zip(sizes, starts, strict=False)
    ]


class OutputCollector:
    """The outputs of some prompts, while updates arrive."""

    def __init__(self, prompts: Sequence[PromptRequests]) -> None:
        self._prompts = prompts
        self._outputs = [_outputs_of(prompt) for prompt in prompts]
        self._places = [(prompt, i) for prompt, outputs in enumerate(self._outputs) for i in range(len(outputs))]
        self.num_missing = len(self._places)  # outputs that are not finished
        self._metrics = [RequestMetrics(time.time()) for _ in prompts]

    def add(self, update: OutputUpdate) -> None:
        """Add the tokens of an update, or raise its error, which then names the prompt by the caller's number."""
        position, content, times = update
        prompt, index = self._places[position]
        if isinstance(content, RequestFailed):
            raise RequestFailed(prompt, content.problem) from content
        if isinstance(content, UserError):
            raise UserError(content.text) from content
        if isinstance(content, Exception):
            raise RuntimeError(f"the engine failed while prompt {prompt} was in flight: {content}") from content
        self._outputs[prompt][index].add(content)
        self.num_missing -= content[-1].finish_reason is not None
        known = self._metrics[prompt]
        first = times[0] if known.first_token_time is None else min(known.first_token_time, times[0])
        self._metrics[prompt] = replace(known, first_token_time=first, last_token_time=times[1])

    def output(self, prompt: int) -> RequestOutput:
        """Return what a prompt's outputs have so far."""
        requests = self._prompts[prompt]
        outputs = [partial.next_output() for partial in self._outputs[prompt]]
        answer = RequestOutput(
            requests.prompt, list(requests.requests[0].prompt_ids), outputs, requests.request_id,
            self._metrics[prompt], self._outputs[prompt][0].prompt_logprobs,
        )  # fmt: skip
        if not answer.finished:
            return answer
        return replace(
            answer, metrics=replace(self._metrics[prompt], finished_time=self._metrics[prompt].last_token_time)
        )


def _outputs_of(prompt: PromptRequests) -> list[PartialOutput]:
    requests = [request for request in prompt.requests for _ in range(prompt.num_beams)]
    return [
        PartialOutput(index, request, prompt.tokenizer, prompt.keeps_stop) for index, request in enumerate(requests)
    ]
