"""`LLM`: an engine that continues prompts, for any number of threads and tasks at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random
from types import TracebackType
from typing import Any, Self
from weakref import finalize

import torch

from opt_trt.api.collect import OutputCollector, OutputUpdate, Send, with_listeners
from opt_trt.api.engines import engine_of
from opt_trt.api.outputs import RequestOutput
from opt_trt.api.prompt_requests import Prompt, PromptRequests, RequestFactory, as_list
from opt_trt.api.sampling_params import SamplingParams
from opt_trt.api.tensors import join_rows, row_requests, tensor_options
from opt_trt.api.wording import in_python
from opt_trt.backends import follow_leader, open_engine
from opt_trt.checkpoint.tokenizer_files import holds_tokenizer, kept_tokenizer
from opt_trt.config.llm_options import LlmOptions, llm_options
from opt_trt.errors import UserError
from opt_trt.host.progress import Bar
from opt_trt.runtime.in_flight import QUIET_SECONDS
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session
from opt_trt.runtime.worker import Worker
from opt_trt.runtime.world import World, current_world
from opt_trt.runtime.world.communicator import join_world
from opt_trt.text.tokenizer import Tokenizer, load_tokenizer

# How often a waiting caller looks for Ctrl-C: one that arrives just before the wait, or in another thread, does not end
# the wait.
CTRL_C_SECONDS = 0.2


class LLM:
    """An OPT that continues prompts: `LLM("path/to/model", dtype="float16").generate("The mayor")`.

    The model is an engine directory, a TensorRT-LLM checkpoint or an original model. An engine of the last two is built
    in `~/.cache/opt_trt/engines` on first use. Options are those of `LlmOptions`. Requests of all callers share one
    batch, which a thread computes until `close()` or the end of the `with` block. Mistakes raise `UserError`.

    Under mpirun, only rank 0 returns from the constructor. The other ranks compute their part of the engine until rank
    0 closes it, and then exit.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        with in_python():
            chosen = llm_options(options)
            limit = KvCacheLimit(chosen.max_tokens_in_paged_kv_cache, chosen.kv_cache_free_gpu_memory_fraction)
            _require_leader(current_world(os.environ))
            tokenizer = _tokenizer(Path(model), chosen)
            session = open_engine(engine_of(Path(model), chosen), limit, chosen.scheduling())
        self._open(session, tokenizer, chosen.seed)

    @classmethod
    def over(cls, session: Session, tokenizer: Tokenizer | None = None, seed: int = 0) -> Self:
        """Return an `LLM` over a session that is open already; nothing else may step it, and `close` closes it."""
        llm = cls.__new__(cls)
        llm._open(session, tokenizer, seed)
        return llm

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue a prompt (text or token ids) or several, and return a `RequestOutput` for each, in their order.

        `sampling_params` are for all prompts or one for each. All prompts are checked before the first one runs.
        """
        several = as_list(prompts)
        with in_python():
            collector = self._collect(self._factory.make(several, sampling_params))
        return [collector.output(prompt) for prompt in range(len(several))]

    async def generate_async(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        """Continue a prompt, and yield what its outputs have so far whenever there are more tokens.

        `text` grows by `text_diff`, in whole characters. Leaving the loop, or cancelling its task, ends the request.
        """
        arrived = asyncio.Queue[OutputUpdate]()
        loop = asyncio.get_running_loop()

        def send(update: OutputUpdate) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, update)

        with in_python():
            requests = self._factory.make([prompt], sampling_params)
            if requests[0].requests[0].sampling.num_beams > 1:
                raise UserError(
                    "beams change until the last token: they cannot be streamed; call generate, or drop use_beam_search"
                )
            collector = OutputCollector(requests)
            with self._in_flight(requests, send, whole=False):
                while collector.num_missing:
                    collector.add(await arrived.get())
                    while not arrived.empty():
                        collector.add(arrived.get_nowait())
                    yield collector.output(0)

    def generate_ids(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        """Return what transformers' `model.generate` does: int64 `[rows, prompt + longest output]`, prompts included.

        `input_ids` is int `[rows, tokens]`, with short prompts padded on the left. Without `attention_mask` the pad id
        is padding. Finished rows are filled with the pad id. Options are those of `TensorOptions`, greedy by default.
        """
        with in_python(max_output_len="max_new_tokens", min_length="min_new_tokens", num_beams="num_beams"):
            chosen = tensor_options(options, self._factory.session.spec)
            rows = row_requests(input_ids, attention_mask, chosen, self._factory)
            collector = self._collect(rows)
        outputs = [output.token_ids for row in range(len(rows)) for output in collector.output(row).outputs]
        return join_rows(input_ids, outputs, chosen)

    def close(self) -> None:
        """End the thread and free the engine's memory; requests in flight fail. Closing twice does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, session: Session, tokenizer: Tokenizer | None, seed: int) -> None:
        self._factory = RequestFactory(session, tokenizer, Random(seed))
        self._worker = Worker(session)
        self._finalizer = finalize(self, _end, self._worker, session)

    def _collect(self, prompts: Sequence[PromptRequests]) -> OutputCollector:
        """Submit requests and wait until all outputs are finished; a progress bar counts them."""
        arrived, collector = SimpleQueue[OutputUpdate](), OutputCollector(prompts)
        bar = Bar(total=collector.num_missing, unit="output", disable=None, delay=QUIET_SECONDS, leave=False)
        with bar, self._in_flight(prompts, arrived.put, whole=True):
            while collector.num_missing:
                try:
                    collector.add(arrived.get(timeout=CTRL_C_SECONDS))
                except Empty:
                    continue
                bar.update()
        return collector

    @contextmanager
    def _in_flight(self, prompts: Sequence[PromptRequests], send: Send, whole: bool) -> Iterator[None]:
        """Submit requests, and cancel the unfinished ones when the block ends, for whatever reason."""
        submitted = self._worker.submit(with_listeners(prompts, send, whole))
        try:
            yield
        finally:
            self._worker.cancel(submitted)


def _require_leader(world: World) -> None:
    """Join the other ranks, if there are any, and return on rank 0 only.

    The other ranks follow rank 0 until it ends, and exit.
    """
    if world.size > 1:
        join_world(world)
    if not world.is_leader:
        follow_leader(world)
        raise SystemExit(0)


def _end(worker: Worker, session: Session) -> None:
    worker.close()
    session.close()


def _tokenizer(model: Path, options: LlmOptions) -> Tokenizer | None:
    """Return the tokenizer asked for, or the model's, or None: token ids need none."""
    if options.tokenizer is not None:
        return load_tokenizer(options.tokenizer)
    directory = model if holds_tokenizer(model) else kept_tokenizer(model)
    return None if directory is None else load_tokenizer(directory)
