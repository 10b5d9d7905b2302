"""A session over one of TensorRT-LLM's runners, on every rank the engine has."""

from __future__ import annotations

import atexit
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from opt_trt.backends.trtllm.engine_file import TrtEngine
from opt_trt.backends.trtllm.generation import RunnerGeneration
from opt_trt.backends.trtllm.keywords import PYTHON, unsupported
from opt_trt.backends.trtllm.runner import Runner
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.errors import UserError, spelled
from opt_trt.runtime.admission import beams_problem, request_problem
from opt_trt.runtime.executor import CLOSED
from opt_trt.runtime.ranks import Ranks
from opt_trt.runtime.request import Request, RequestFailed


class RunnerSession:
    """A `Session` whose requests are batched by calls: requests that come while a call runs wait for the next one.

    With several ranks, the C++ runners communicate by themselves; the Python ones need the same call on all ranks.
    """

    def __init__(self, engine: TrtEngine, runner: Runner, options: RuntimeOptions, ranks: Ranks) -> None:
        gathers = options.gather_generation_logits or runner.kind == PYTHON
        self.spec = replace(engine.spec, gather_generation_logits=engine.spec.gather_generation_logits or gathers)
        self._engine, self._runner, self._ranks = engine, runner, ranks
        self._is_closed = False
        # Engines that gather context logits expect them in all parts of a stream, but get them in the first only. Ranks
        # of the Python session must not wait for one another until the user reads a token.
        can_stream = not self.spec.gather_context_logits and (runner.kind != PYTHON or engine.world_size == 1)
        self.in_flight = RunnerGeneration(runner, self.spec, self._call, can_stream)
        self._shut_down = runner.live.executor.shutdown if hasattr(runner.live, "executor") else _nothing
        atexit.register(self._shut_down)  # an executor's threads use MPI, which ends with the process

    def check(self, request: Request, index: int) -> None:
        """Raise `RequestFailed` if engine or runner can never serve the request."""
        problem = (
            request_problem(request, self.spec)
            or _beams_problem(request, self._engine)
            or unsupported(request.sampling, self._runner.kind, self._runner.release)
        )
        if problem:
            raise RequestFailed(index, problem)

    def obey(self, message: memoryview) -> None:
        """Make the leader's call on this rank, too."""
        for _ in _outputs(self._runner.live.generate(**pickle.loads(message))):
            pass

    def close(self) -> None:
        """See `Session.close`."""
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self._shut_down)
        self._shut_down()
        self._ranks.close()

    def _call(self, given: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
        if self._is_closed:  # before the other ranks get the message: they no longer know the session
            raise UserError(CLOSED)
        if self._runner.kind != PYTHON:
            return _outputs(self._runner.live.generate(**given))
        return self._call_of_all(given)

    def _call_of_all(self, given: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
        with self._ranks.step(partial(pickle.dumps, given)):
            yield from _outputs(self._runner.live.generate(**given))


def _nothing() -> None:
    """Do nothing: the Python runner has nothing to shut down."""


def _outputs(returned: Any) -> Iterator[Mapping[str, Any]]:
    """Return an iterator over the dictionary, or over those of a stream; a following rank gets an empty list."""
    return iter([returned] if isinstance(returned, Mapping) else returned)


def _beams_problem(request: Request, engine: TrtEngine) -> str | None:
    beams = request.sampling.num_beams
    if beams > engine.max_beam_width:
        return (
            f"asks for {beams} beams, the engine takes {engine.max_beam_width}; lower {spelled('num_beams')} or build "
            f"with a larger {spelled('max_beam_width')}"
        )
    return beams_problem(request)
