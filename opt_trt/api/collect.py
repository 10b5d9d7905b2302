"""What the worker has to tell about the outputs of some prompts, and what the caller makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from opt_trt.api.outputs import Growing, RequestOutput
from opt_trt.api.prompt_requests import Asked
from opt_trt.errors import UserError
from opt_trt.runtime.generate import event_of, events_of, result_of
from opt_trt.runtime.request import Request, RequestFailed, TokenEvent
from opt_trt.runtime.sequence import TokenSequence

Letter = tuple[int, Sequence[TokenEvent] | Exception]  # which output, its next tokens or why there are none


@dataclass(eq=False)
class Mailbox:
    """A `Listener` that sends letters to another thread: one a token, or one for a whole output.

    Beams are whole outputs: what is best turns out at the end.
    """

    position: int  # of the first of the request's outputs
    num_beams: int
    send: Callable[[Letter], object]
    whole: bool
    _events: list[TokenEvent] = field(default_factory=list)

    def advanced(self, sequence: TokenSequence) -> None:
        """See `Listener.advanced`."""
        if sequence.request.sampling.num_beams > 1:
            if sequence.finish_reason is not None:
                for beam, result in enumerate(result_of(sequence).beams[: self.num_beams]):
                    self.send((self.position + beam, events_of(result)))
            return
        self._events.append(event_of(sequence))
        if not self.whole or sequence.finish_reason is not None:
            events, self._events = self._events, []
            self.send((self.position, events))

    def failed(self, error: Exception) -> None:
        """See `Listener.failed`."""
        self.send((self.position, error))


def addressed(asked: Sequence[Asked], send: Callable[[Letter], object], whole: bool) -> list[tuple[Request, Mailbox]]:
    """Every request with the mailbox of its outputs; positions count the outputs of all prompts."""
    sizes = [(request, one.num_beams) for one in asked for request in one.requests]
    starts = accumulate((size for _, size in sizes), initial=0)
    return [(request, Mailbox(start, size, send, whole)) for (request, size), start in zip(sizes, starts, strict=False)]


class Delivery:
    """The outputs of some prompts while letters arrive; positions count the outputs of all of them."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self._asked = asked
        self._outputs = [
            [Growing(i, r, one.tokenizer) for i, r in enumerate(r for r in one.requests for _ in range(one.num_beams))]
            for one in asked
        ]
        self._places = [(prompt, i) for prompt, outputs in enumerate(self._outputs) for i in range(len(outputs))]
        self.missing = len(self._places)  # outputs that are not finished

    def take(self, letter: Letter) -> None:
        """Take tokens; an error is raised, naming the prompt as the caller numbers it."""
        position, content = letter
        prompt, index = self._places[position]
        if isinstance(content, RequestFailed):
            raise RequestFailed(prompt, content.problem) from content
        if isinstance(content, UserError):
            raise UserError(content.text) from content
        if isinstance(content, Exception):
            raise RuntimeError(f"the engine failed while prompt {prompt} was in flight: {content}") from content
        self._outputs[prompt][index].add(content)
        self.missing -= content[-1].finish_reason is not None

    def output(self, prompt: int) -> RequestOutput:
        """What there is of a prompt's outputs."""
        asked = self._asked[prompt]
        outputs = [growing.take() for growing in self._outputs[prompt]]
        return RequestOutput(asked.prompt, list(asked.requests[0].prompt_ids), outputs)
