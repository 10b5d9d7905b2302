"""Generate with an engine: prompts from flags or files, outputs to the terminal or to files of ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opt_trt.config.run import DEFAULT_PROMPT, RunConfig
from opt_trt.errors import UserError
from opt_trt.run import id_files, prompt_files
from opt_trt.run.console import IdText, StreamPrinter, print_pair
from opt_trt.run.profiling import time_generations
from opt_trt.runtime.kv_cache import KvCacheLimit
from opt_trt.runtime.request import Request
from opt_trt.runtime.session import Session
from opt_trt.step import DecoderSpec
from opt_trt.text import Decodes, Tokenizer, load_tokenizer

OpenSession = Callable[[Path, KvCacheLimit], Session]
NEVER_ENDS = -1  # the --end_id that switches the end id off
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """What one call of the script is about."""

    config: RunConfig
    session: Session
    requests: list[Request]
    text: Decodes

    @property
    def prints_text(self) -> bool:
        """Whether outputs go to the terminal: they do unless they go to a file."""
        return not _targets(self.config)


def run(config: RunConfig, open_session: OpenSession | None = None) -> None:
    """Do what `run.py` was asked for; `open_session` stands in for the engine in tests."""
    for target in _targets(config):
        id_files.check_target(target)
    tokenizer = _tokenizer(config)
    session = (open_session or _open_engine)(Path(config.engine_dir), _kv_cache_limit(config))
    job = Job(config, session, _requests(config, session.spec, tokenizer), tokenizer or IdText())
    outputs = _stream(job) if config.streaming else _generate(job)
    _write(job, outputs)
    if config.run_profiling:
        print(time_generations(session, job.requests))


def _targets(config: RunConfig) -> list[Path]:
    return [Path(name) for name in (config.output_csv, config.output_npy) if name is not None]


def _open_engine(engine_dir: Path, limit: KvCacheLimit) -> Session:
    from opt_trt.backends import open_engine  # what runs an engine is loaded only once prompts and flags are good

    return open_engine(engine_dir, limit)


def _kv_cache_limit(config: RunConfig) -> KvCacheLimit:
    return KvCacheLimit(config.max_tokens_in_paged_kv_cache, config.kv_cache_free_gpu_memory_fraction)


def _reads_text(config: RunConfig) -> bool:
    if config.input_file is None:
        return True
    if config.input_text != (DEFAULT_PROMPT,):
        raise UserError("--input_text and --input_file both give prompts; drop one of the two")
    return prompt_files.is_text(Path(config.input_file))


def _tokenizer(config: RunConfig) -> Tokenizer | None:
    """The tokenizer if text goes in, or if it comes out and there is one; ids in and ids out need none."""
    reads_text = _reads_text(config)
    directory = config.tokenizer_dir or config.hf_model_dir
    if reads_text and directory is None:
        raise UserError(
            "text prompts need a tokenizer: give --tokenizer_dir (or --hf_model_dir), the directory with vocab.json "
            "and merges.txt, or token ids with --input_file ids.csv"
        )
    if directory is None or not (reads_text or not _targets(config)):
        return None
    return load_tokenizer(directory, add_special_tokens=not config.no_add_special_tokens)


def _requests(config: RunConfig, spec: DecoderSpec, tokenizer: Tokenizer | None) -> list[Request]:
    assert config.max_output_len is not None  # checked by RunConfig
    end_id = _end_id(config, spec)
    return [Request(ids, config.max_output_len, end_id) for ids in _prompts(config, spec, tokenizer)]


def _prompts(config: RunConfig, spec: DecoderSpec, tokenizer: Tokenizer | None) -> list[Ids]:
    if _reads_text(config):
        assert tokenizer is not None
        texts = config.input_text if config.input_file is None else prompt_files.read_texts(Path(config.input_file))
        return [tokenizer.encode(text, config.max_input_length) for text in texts]
    assert config.input_file is not None
    pad_id = spec.pad_id if config.pad_id is None else config.pad_id
    return prompt_files.read_ids(
        Path(config.input_file), prompt_files.PromptRules(config.max_input_length, spec.vocab_size, pad_id)
    )


def _end_id(config: RunConfig, spec: DecoderSpec) -> int | None:
    end_id = spec.end_id if config.end_id is None else config.end_id
    if end_id == NEVER_ENDS:
        return None
    if not 0 <= end_id < spec.vocab_size:
        raise UserError(
            f"--end_id {end_id} is outside the vocabulary of the engine, 0 to {spec.vocab_size - 1}; "
            f"give one of these, or {NEVER_ENDS} to end at --max_output_len only"
        )
    return end_id


def _generate(job: Job) -> list[Ids]:
    results = job.session.generate(job.requests)
    if job.prints_text:
        for index, result in enumerate(results):
            print_pair(index, result, job.text)
    return [result.output_ids for result in results]


def _stream(job: Job) -> list[Ids]:
    outputs: list[list[int]] = [[] for _ in job.requests]
    events = job.session.stream(job.requests)
    printer = None
    if job.prints_text:
        printer = StreamPrinter(job.requests, job.text, job.config.streaming_interval)
    for event in events:
        outputs[event.index].append(event.token_id)
        if printer is not None:
            printer.add(event)
    return [tuple(ids) for ids in outputs]


def _write(job: Job, outputs: list[Ids]) -> None:
    """Prompt and output in one row, filled up with the end id, as upstream."""
    rows = [(*request.prompt_ids, *output) for request, output in zip(job.requests, outputs, strict=True)]
    end_id = job.requests[0].end_id
    ids = id_files.pad_rows(rows, job.session.spec.end_id if end_id is None else end_id)
    if job.config.output_csv is not None:
        id_files.write_csv(Path(job.config.output_csv), ids)
    if job.config.output_npy is not None:
        id_files.write_npy(Path(job.config.output_npy), ids)
