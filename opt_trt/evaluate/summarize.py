"""Summarize CNN/DailyMail with Hugging Face and with an engine; print and check how they compare."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from opt_trt.backends import open_engine
from opt_trt.checkpoint.tokenizer_files import kept_tokenizer
from opt_trt.config.summarize_flags import SummarizeConfig
from opt_trt.errors import UserError
from opt_trt.evaluate.dataset import DatasetSource, load_articles
from opt_trt.evaluate.engine_summarizer import EngineSummarizer
from opt_trt.evaluate.gate import Gate, check_gates
from opt_trt.evaluate.measure import MeasurePlan, measure
from opt_trt.evaluate.prompts import Sample, Selection, select_samples
from opt_trt.evaluate.report import Report, write_json, write_summaries
from opt_trt.evaluate.rouge import counts_words, unseen_warning
from opt_trt.evaluate.scores import score
from opt_trt.evaluate.summarizer import Demand, Summarizer
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import Session
from opt_trt.step import DecoderSpec
from opt_trt.text.tokenizer import Tokenizer, load_tokenizer

EXCERPT_CHARS = 400
TITLES = {"hf": "Hugging Face"}  # engines are called by their names
FILES = {"engine": "trtllm"}  # upstream's name for the summaries of a single engine
Say = Callable[[str], None]


def summarize(config: SummarizeConfig) -> None:
    """Measure, print the table, write the files, then check the limits.

    Raise `UserError` for what the user can fix, and `CheckFailed` when a score is beyond its limit.
    """
    gates = _gates(config) if config.check_accuracy else None
    say: Say = print if config.talks else lambda text: None
    tokenizer = _load_tokenizer(config)
    samples = _load_samples(config, tokenizer)
    summarizers = _load_summarizers(config, tokenizer, say)
    for summarizer in summarizers.values():
        summarizer.check(_demand(config, samples))
    if config.output_dir is not None:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    _show_one(summarizers, samples[0], tokenizer, say)
    report = _measure(config, summarizers, samples, tokenizer)
    print(report.table())
    references = [sample.article.highlights for sample in samples]
    if warning := unseen_warning(references):
        print(f"WARNING: {warning}", file=sys.stderr)
    if config.output_dir is not None:
        _write(config, report)
    if gates is not None:
        if not any(map(counts_words, references)):
            raise UserError("the gate scored nothing: ROUGE counts words of a-z and 0-9, and no reference has any")
        engines = [report.scores[name] for name in config.engine_names()]
        passed = check_gates(gates, engines, report.scores.get("hf"))
        say(f"the accuracy gate passed: {passed}")


def _tokenizer_dir(config: SummarizeConfig) -> Path:
    given = config.tokenizer_dir or config.hf_model_dir
    directory = kept_tokenizer(Path(config.engine_dir[0])) if given is None else Path(given)
    if directory is None:
        raise UserError(
            f"summaries are text, and {config.engine_dir[0]} keeps no tokenizer: give --tokenizer_dir (or "
            "--hf_model_dir, whose tokenizer is then used)"
        )
    return directory


def _load_tokenizer(config: SummarizeConfig) -> Tokenizer:
    return load_tokenizer(_tokenizer_dir(config), add_special_tokens=not config.no_add_special_tokens)


def _load_samples(config: SummarizeConfig, tokenizer: Tokenizer) -> list[Sample]:
    source = DatasetSource(
        None if config.dataset_dir is None else Path(config.dataset_dir),
        None if config.dataset_cache_dir is None else Path(config.dataset_cache_dir),
        config.random_seed,
    )
    selection = Selection(config.max_ite * config.batch_size, config.min_input_length, config.max_input_length)
    samples = select_samples(load_articles(source), tokenizer, selection)
    if num_cut := sum(sample.is_cut for sample in samples):
        cut = f"are cut to their last {config.max_input_length:,} tokens (--max_input_length)"
        print(f"{num_cut} of {len(samples)} articles {cut}", file=sys.stderr)
    return samples


def _load_summarizers(config: SummarizeConfig, tokenizer: Tokenizer, say: Say) -> dict[str, Summarizer]:
    """Return the models to run by their names; Hugging Face is first, because the report compares with the first."""
    sessions = _open_engines(config) if config.test_trt_llm else {}
    end_ids = _end_ids(config, tokenizer, [session.spec for session in sessions.values()])
    summarizers: dict[str, Summarizer] = {}
    if config.test_hf:
        # Imported here, because transformers' models take seconds to import and not every run needs them.
        from opt_trt.evaluate.hf_reference import Decoding, HfReference

        if config.hf_data_type in ("fp16", "float16"):
            say("Hugging Face computes in fp16, as asked: slow on a CPU; --hf_data_type fp32 is the fair opponent")
        decoding = Decoding(config.output_len, end_ids, _pad_id(config, tokenizer), config.sampling())
        summarizers["hf"] = HfReference(Path(str(config.hf_model_dir)), config.hf_data_type, decoding)
    for name, session in sessions.items():
        summarizers[name] = EngineSummarizer(session, config.output_len, end_ids, config.sampling())
    return summarizers


def _open_engines(config: SummarizeConfig) -> dict[str, Session]:
    limit = KvCacheLimit(config.max_tokens_in_paged_kv_cache, config.kv_cache_free_gpu_memory_fraction)
    return {
        name: open_engine(Path(directory), limit, config.scheduling(), config.runtime_options())
        for name, directory in zip(config.engine_names(), config.engine_dir, strict=True)
    }


def _end_ids(config: SummarizeConfig, tokenizer: Tokenizer, engines: Sequence[DecoderSpec]) -> tuple[int, ...]:
    """Return the tokens that end a summary: those of `--end_id`, or the tokenizer's and all of the engines'."""
    if config.end_id is not None:
        return tuple(end_id for end_id in config.end_id if end_id >= 0)
    if tokenizer.eos_id is None:
        raise UserError(f"the tokenizer in {_tokenizer_dir(config)} names no eos_token; give --end_id (-1: none)")
    further = (end_id for engine in engines for end_id in engine.end_token_ids or ())
    return tuple(dict.fromkeys((tokenizer.eos_id, *further)))


def _pad_id(config: SummarizeConfig, tokenizer: Tokenizer) -> int:
    """Return the token that fills short prompts of a batch; they are masked, so that any token of the model will do."""
    ids = (config.pad_id, tokenizer.pad_id, tokenizer.eos_id, 0)
    return next(i for i in ids if i is not None)


def _demand(config: SummarizeConfig, samples: Sequence[Sample]) -> Demand:
    return Demand(
        longest_prompt=max(len(s.prompt_ids) for s in samples),
        largest_id=max(max(s.prompt_ids) for s in samples),
        output_len=config.output_len,
        perplexity=config.eval_ppl,
    )


def _show_one(summarizers: dict[str, Summarizer], sample: Sample, tokenizer: Tokenizer, say: Say) -> None:
    """Run one article before the clock starts, to warm up caches and to show what is measured."""
    article = sample.article
    cut = " ..." if len(article.text) > EXCERPT_CHARS else ""
    say(f"Article:      {article.text[:EXCERPT_CHARS]}{cut}\n\nReference:    {article.highlights}\n")
    for name, summarizer in summarizers.items():
        (output,) = summarizer.generate([sample.prompt_ids])
        say(f"{TITLES.get(name, name) + ':':<14}{tokenizer.decode(output)}\n")


def _measure(
    config: SummarizeConfig, summarizers: dict[str, Summarizer], samples: Sequence[Sample], tokenizer: Tokenizer
) -> Report:
    plan = MeasurePlan(config.batch_size, config.eval_ppl)
    measured = measure(summarizers, samples, plan, time.perf_counter)
    references = [s.article.highlights for s in samples]
    scores = {
        name: score(TITLES.get(name, name), m, [tokenizer.decode(o) for o in m.outputs], references)
        for name, m in measured.items()
    }
    return Report(scores, tuple(s.article.index for s in samples), asdict(config))


def _write(config: SummarizeConfig, report: Report) -> None:
    directory = Path(str(config.output_dir))
    sources = {"hf": f"Model path: {config.hf_model_dir}"}
    sources |= {n: f"Engine path: {d}" for n, d in zip(config.engine_names(), config.engine_dir, strict=True)}
    for name, scores in report.scores.items():
        header = (sources[name], f"Tokenizer path: {_tokenizer_dir(config)}")
        file_name = f"{FILES.get(name, name)}.out"
        write_summaries(directory / file_name, header, report.indices, scores.summaries)
    write_json(directory / "summary.json", report.to_json())
    print(f"wrote {directory / 'summary.json'}")


def _gates(config: SummarizeConfig) -> list[Gate]:
    """Return a gate for each engine; a single limit holds for all of them."""
    perplexity = config.tensorrt_llm_ppl_threshold if config.eval_ppl else None
    return [
        Gate(
            _limit(config.tensorrt_llm_rouge1_threshold, engine),
            None if perplexity is None else _limit(perplexity, engine),
            None if config.max_rouge1_drop is None else _limit(config.max_rouge1_drop, engine),
        )
        for engine in range(len(config.engine_dir))
    ]


def _limit(limits: tuple[float, ...], engine: int) -> float:
    return limits[engine] if len(limits) > 1 else limits[0]
