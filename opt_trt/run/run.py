"""Generate with an engine: prompts from flags or files, outputs to the terminal or to files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opt_trt.checkpoint.tokenizer_files import kept_tokenizer
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.run import output_files
from opt_trt.run.console import IdText, Printing, StreamPrinter, print_results
from opt_trt.run.interactive import check_input, converse
from opt_trt.run.output_files import Output, output_of, write_outputs
from opt_trt.run.profiling import time_generations
from opt_trt.run.requests import make_requests, reads_text
from opt_trt.run.spool import Spool, check_memory
from opt_trt.runtime.in_flight import finished, stream
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session
from opt_trt.runtime.world import current_world
from opt_trt.text.tokenizer import Tokenizer, load_tokenizer

OpenSession = Callable[[Path, KvCacheLimit, Scheduling, RuntimeOptions], Session]


@dataclass(frozen=True)
class Job:
    """One call of the script; `printing` is None if ids are written to a file instead."""

    session: Session
    requests: Sequence[Request]
    printing: Printing | None
    num_beams: int = 1  # how many outputs of each request to show
    logits_dir: Path | None = None  # logits wait there for their place in a file


def run(config: RunConfig, open_session: OpenSession | None = None) -> None:
    """Run the command `run`; tests pass an `open_session` in place of the engine."""
    if config.interactive:
        check_input(current_world(os.environ))
    for target in config.targets():
        output_files.check_target(Path(target))
    tokenizer = _tokenizer(config)
    session = (open_session or _open_engine)(
        Path(config.engine_dir), _kv_cache_limit(config), config.scheduling(), config.runtime_options()
    )
    if config.interactive:
        assert tokenizer is not None  # prompts are text
        converse(config, session, tokenizer)
        return
    requests = make_requests(config, session.spec, tokenizer)
    printing = Printing(tokenizer or IdText(), config.num_draws, config.streaming_interval)
    check_memory(requests, session.spec)
    logits_dir = None if config.output_logits_npy is None else Path(config.output_logits_npy).parent
    job = Job(session, requests, printing if config.prints_outputs() else None, config.num_shown_beams, logits_dir)
    outputs = _stream(job) if config.streaming else _generate(job)
    write_outputs(config, requests, outputs, session.spec.end_id)
    if config.talks and config.targets():
        written = [target for target in config.targets() if Path(target).exists()]
        print(f"wrote {' and '.join(written)}", file=sys.stderr)
    if config.run_profiling:
        print(time_generations(session, requests))


def _open_engine(engine_dir: Path, limit: KvCacheLimit, scheduling: Scheduling, options: RuntimeOptions) -> Session:
    from opt_trt.backends import open_engine  # torch takes seconds to load

    return open_engine(engine_dir, limit, scheduling, options)


def _kv_cache_limit(config: RunConfig) -> KvCacheLimit:
    return KvCacheLimit(config.max_tokens_in_paged_kv_cache, config.kv_cache_free_gpu_memory_fraction)


def _tokenizer(config: RunConfig) -> Tokenizer | None:
    """Return the tokenizer if prompts or words are text, or if one is given to print outputs; else None."""
    words = [f"--{name}" for name in ("stop_words", "bad_words") if getattr(config, name)]
    needed_by = ["text prompts"] * reads_text(config) + words
    given = config.tokenizer_dir or config.hf_model_dir
    directory = None if given is None else Path(given)
    if needed_by and directory is None:
        directory = kept_tokenizer(Path(config.engine_dir))
    if needed_by and directory is None:
        raise UserError(
            f"{' and '.join(needed_by)} need a tokenizer, and {config.engine_dir} keeps none: give --tokenizer_dir (or "
            "--hf_model_dir), the directory with vocab.json and merges.txt, or token ids with --input_file ids.csv"
            + " and no words"
            * bool(words)
        )
    if directory is None or not (needed_by or config.prints_outputs()):
        return None
    return load_tokenizer(directory, add_special_tokens=not config.no_add_special_tokens)


def _generate(job: Job) -> list[Output]:
    """Answer all requests; logits leave the memory as soon as their output is finished."""
    spool = None if job.logits_dir is None else Spool(job.logits_dir)
    results: dict[int, list[Result]] = {}
    outputs: dict[int, list[Output]] = {}
    for index, result in finished(job.session, job.requests):
        beams = result.beams[: job.num_beams] or (result,)
        outputs[index] = [output_of(beam, spool) for beam in beams]
        results[index] = [replace(beam, context_logits=None, generation_logits=None, beams=()) for beam in beams]
    if job.printing is not None:
        print_results([results[index] for index in range(len(results))], job.printing)
    return [output for index in range(len(outputs)) for output in outputs[index]]


def _stream(job: Job) -> list[Output]:
    outputs = [Output([], []) for _ in job.requests]
    events = stream(job.session, job.requests)
    printer = None if job.printing is None else StreamPrinter(job.requests, job.printing)
    for event in events:
        outputs[event.index].add(event)
        if printer is not None:
            printer.add(event)
    return outputs
