"""`LLM`: an engine that continues prompts, for any number of threads and tasks at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, Unpack, overload
from weakref import finalize

import torch

from opt_trt.api.call_arguments import Params, Prompt, as_list, read_call
from opt_trt.api.collect import OutputCollector, OutputUpdate, Send, token_ids, with_listeners
from opt_trt.api.engines import engine_of
from opt_trt.api.llm_keywords import LlmKeywords
from opt_trt.api.not_offered import not_offered
from opt_trt.api.outputs import RequestOutput
from opt_trt.api.pending import CTRL_C_SECONDS, PendingOutput
from opt_trt.api.prompt_requests import PromptRequests, RequestFactory
from opt_trt.api.tensor_call import GeneratedIds, Streamer, TensorCall, read_tensor_call
from opt_trt.api.tensors import join_rows, row_requests
from opt_trt.api.wording import in_python
from opt_trt.backends import follow_leader, open_engine
from opt_trt.checkpoint.tokenizer_files import holds_tokenizer, kept_tokenizer
from opt_trt.config.field_types import checked, shown
from opt_trt.config.llm_options import LlmOptions, llm_options
from opt_trt.errors import UserError
from opt_trt.host.progress import Bar
from opt_trt.runtime.in_flight import QUIET_SECONDS
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session
from opt_trt.runtime.worker import Worker
from opt_trt.runtime.world import World, current_world
from opt_trt.runtime.world.communicator import join_world
from opt_trt.runtime.world.cores import use_threads
from opt_trt.text.tokenizer import Tokenizer, load_tokenizer


class LLM:
    """An OPT that continues prompts: `LLM("path/to/model", dtype="float16").generate("The mayor")`.

    The model is an engine directory, a TensorRT-LLM checkpoint or an original model. An engine of the last two is built
    in `~/.cache/opt_trt/engines` on first use. Options are those of `LlmOptions`; vLLM's and TensorRT-LLM's names for
    them are taken. Requests of all callers share one batch, which a thread computes until `close()` or the end of the
    `with` block. Mistakes raise `UserError`.

    Under mpirun, only rank 0 returns from the constructor. The other ranks compute their part of the engine until rank
    0 closes it, and then exit.
    """

    def __init__(self, model: str | Path, tokenizer: str | Path | None = None, **options: Unpack[LlmKeywords]) -> None:
        with in_python():
            path, given = directory("model", model), directory("tokenizer", tokenizer) if tokenizer else None
            chosen = llm_options({"tokenizer": given, **options})
            limit = KvCacheLimit(chosen.max_tokens_in_paged_kv_cache, chosen.kv_cache_free_gpu_memory_fraction)
            use_threads(current_world(os.environ), chosen.threads)
            _require_leader(current_world(os.environ))
            text = _tokenizer(Path(path), chosen)
            session = open_engine(engine_of(Path(path), chosen), limit, chosen.scheduling())
        self._open(session, text, chosen.seed)

    @classmethod
    def over(cls, session: Session, tokenizer: Tokenizer | None = None, seed: int = 0) -> Self:
        """Return an `LLM` over a session that is open already; nothing else may step it, and `close` closes it."""
        llm = cls.__new__(cls)
        llm._open(session, tokenizer, seed)
        return llm

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        **options: Any,
    ) -> list[RequestOutput]:
        """Continue a prompt (text or token ids) or several, and return a `RequestOutput` for each, in their order.

        A prompt may also be an array of ids, or `{"prompt": text}` or `{"prompt_token_ids": ids}`. `sampling_params`
        are for all prompts or one for each; a dictionary will do, and so will options by name: `generate(prompt,
        max_tokens=20)`. All prompts are checked before the first one runs. `use_tqdm=False` shows no progress bar.
        """
        with in_python():
            given, params = read_call("generate", prompts, sampling_params, options)
            several = as_list(given)
            collector = self._collect(
                self._factory.make(several, params),
                shows_progress=callable(use_tqdm) or bool(checked("use_tqdm", bool | None, use_tqdm)),
            )
        return [collector.output(prompt) for prompt in range(len(several))]

    def generate_async(
        self,
        prompt: Prompt | None = None,
        sampling_params: Params | None = None,
        request_id: str | None = None,
        *,
        streaming: bool = True,
        **options: Any,
    ) -> PendingOutput:
        """Begin to continue a prompt, and return its `PendingOutput`, to iterate over, to await or to wait for.

        `async for` yields what the outputs have so far whenever there are more tokens: `text` grows by `text_diff`, in
        whole characters. Leaving the loop, or cancelling its task, ends the request. `streaming=False` yields the
        finished answer only.
        """
        with in_python():
            given, params = read_call("generate_async", prompt, sampling_params, options)
            [requests] = self._factory.make([given], params)
            number = checked("request_id", str | int | None, request_id)
            named = requests if number is None else replace(requests, request_id=str(number))
            return PendingOutput(self._worker, named, bool(checked("streaming", bool | None, streaming)))

    @overload
    def generate_ids(
        self, input_ids: Any = None, attention_mask: Any = None, generation_config: Any = None,
        streamer: Streamer | None = None, return_dict_in_generate: Literal[False] = False, **options: Any,
    ) -> torch.Tensor: ...  # fmt: skip

    @overload
    def generate_ids(
        self, input_ids: Any = None, attention_mask: Any = None, generation_config: Any = None,
        streamer: Streamer | None = None, *, return_dict_in_generate: Literal[True], **options: Any,
    ) -> GeneratedIds: ...  # fmt: skip

    def generate_ids(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        generation_config: Any = None,
        streamer: Streamer | None = None,
        return_dict_in_generate: bool = False,
        **options: Any,
    ) -> torch.Tensor | GeneratedIds:
        """Return what transformers' `model.generate` does: int64 `[rows, prompt + longest output]`, prompts included.

        `input_ids` is int `[rows, tokens]`, a tensor, an array or lists, with short prompts padded on the left. Without
        `attention_mask` the pad id is padding. Finished rows are filled with the pad id. Options are those of
        `TensorOptions`, greedy by default; `generation_config` gives those that are not given by name. A `streamer`
        gets the tokens of a single row as they come. `return_dict_in_generate=True` returns `GeneratedIds`.
        """
        with in_python(max_output_len="max_new_tokens", min_length="min_new_tokens", num_beams="num_beams"):
            spec = self._factory.session.spec
            call = read_tensor_call(input_ids, attention_mask, generation_config, streamer, options, spec)
            as_dict = checked("return_dict_in_generate", bool | None, return_dict_in_generate)
            rows = row_requests(call.input_ids, call.attention_mask, call.options, self._factory)
            collector = self._collect(rows) if call.streamer is None else self._stream(call, rows)
        outputs = [output.token_ids for row in range(len(rows)) for output in collector.output(row).outputs]
        ids = join_rows(call.input_ids, outputs, call.options)
        return GeneratedIds(ids) if as_dict else ids

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, one of transformers; None without one."""
        return None if self._factory.tokenizer is None else self._factory.tokenizer.of_transformers

    def get_tokenizer(self) -> Any:
        """Return the tokenizer, one of transformers; `UserError` without one."""
        if self._factory.tokenizer is None:
            raise UserError("this LLM has no tokenizer: give LLM(model, tokenizer=DIRECTORY)")
        return self.tokenizer

    def close(self) -> None:
        """End the thread and free the engine's memory; requests in flight fail. Closing twice does nothing."""
        self._finalizer()

    def shutdown(self) -> None:
        """Do what `close` does."""
        self.close()

    def __reduce__(self) -> NoReturn:
        raise UserError(
            "an LLM cannot be copied or pickled: it holds a thread and the memory of an engine; "
            "share it between threads, or open LLM(...) in the other process"
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise not_offered(name)

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

    def _stream(self, call: TensorCall, rows: Sequence[PromptRequests]) -> OutputCollector:
        """Submit the request of a single row, and give its tokens to the streamer as they come."""
        assert call.streamer is not None
        put = call.streamer.put
        put(call.input_ids.cpu())
        collector = self._collect(rows, False, lambda update: [put(torch.tensor([i])) for i in token_ids(update)])
        call.streamer.end()
        return collector

    def _collect(
        self,
        prompts: Sequence[PromptRequests],
        shows_progress: bool = True,
        follow: Callable[[OutputUpdate], object] | None = None,
    ) -> OutputCollector:
        """Submit requests and wait until all outputs are finished; a progress bar counts them.

        `follow` gets the tokens of each output as they come.
        """
        arrived, collector = SimpleQueue[OutputUpdate](), OutputCollector(prompts)
        hidden = None if shows_progress else True  # None hides it off a terminal
        bar = Bar(total=collector.num_missing, unit="output", disable=hidden, delay=QUIET_SECONDS, leave=False)
        with bar, self._in_flight(prompts, arrived.put, whole=follow is None):
            while collector.num_missing:
                try:
                    update = arrived.get(timeout=CTRL_C_SECONDS)
                except Empty:
                    continue
                collector.add(update)
                if follow is not None:
                    follow(update)
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


def directory(name: str, given: object) -> str:
    """Return a directory that is given as text or a path; `UserError` names anything else."""
    if not isinstance(given, str | os.PathLike):
        raise UserError(f"{name} must be a directory, as text or a path, found {shown(given)}")
    return os.fsdecode(given)


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
