"""Every option, and the keyword by which each of TensorRT-LLM's two runners takes it: one table.

`ModelRunnerCpp.generate` ignores keywords it does not know, so it may only be given keywords of this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opt_trt.backends.trtllm.release import Release
from opt_trt.config.sampling import GREEDY, Sampling
from opt_trt.errors import spelled

CPP, PYTHON = "ModelRunnerCpp", "ModelRunner"
OLDEST_RUNNER = Release(0, 12)  # the first release whose C++ runner is known; earlier ones had another runner


@dataclass(frozen=True)
class Keyword:
    """The keywords of one option; None if a runner has none, for the reason `why`."""

    cpp: str | None
    python: str | None
    why: str = ""
    since: Release = OLDEST_RUNNER  # the first release whose C++ runner has the keyword

    def of(self, runner: str, release: Release) -> str | None:
        """Return the keyword of a runner in a release."""
        if runner == PYTHON:
            return self.python
        return self.cpp if release >= self.since else None


def both(name: str) -> Keyword:
    """Return an option that both runners take by one name."""
    return Keyword(name, name)


ONE_OUTPUT = "only the C++ session of 1.0 and later has several outputs for a prompt"

SAMPLING = {  # by the name of the field of `Sampling`; keywords of `generate`
    "temperature": both("temperature"),
    "top_k": both("top_k"),
    "top_p": both("top_p"),
    "min_p": Keyword("min_p", None, "only the C++ session of 1.0 and later knows it", Release(1, 0)),
    "repetition_penalty": both("repetition_penalty"),
    "presence_penalty": both("presence_penalty"),
    "frequency_penalty": both("frequency_penalty"),
    "no_repeat_ngram_size": both("no_repeat_ngram_size"),
    "min_length": Keyword("min_tokens", "min_length", "the C++ session knows it since 1.0", Release(1, 0)),
    "bad_words": both("bad_words_list"),
    "allowed_ids": Keyword(None, None, "TensorRT-LLM's runners cannot leave out all tokens but some"),
    "logit_bias": Keyword(None, None, "TensorRT-LLM's runners add nothing to logits"),
    "random_seed": both("random_seed"),
    "sequence": Keyword("num_return_sequences", None, ONE_OUTPUT, Release(1, 0)),
    "num_beams": both("num_beams"),
    "length_penalty": both("length_penalty"),
    "early_stopping": both("early_stopping"),
    "beam_search_diversity_rate": both("beam_search_diversity_rate"),
    "penalty_alpha": Keyword(None, None, "TensorRT-LLM has no contrastive search"),
    "log_probs": Keyword("output_log_probs", None, "only the C++ session reports them"),
    "prompt_log_probs": Keyword(None, None, "TensorRT-LLM's runners report logits of a prompt, not log-probabilities"),
}

OPENING = {  # by the name of the flag; keywords of `from_dir`
    "enable_context_fmha_fp32_acc": both("enable_context_fmha_fp32_acc"),
    "multi_block_mode": both("multi_block_mode"),
    "gpu_weights_percent": both("gpu_weights_percent"),
    "debug_mode": both("debug_mode"),
    "fail_fast_on_attention_window_too_large": both("fail_fast_on_attention_window_too_large"),
    "cuda_graph_mode": Keyword("cuda_graph_mode", None),
    "enable_chunked_context": Keyword("enable_chunked_context", None),
    "gather_generation_logits": Keyword("gather_generation_logits", None),
    "max_attention_window_size": Keyword("max_attention_window_size", None),
    "sink_token_length": Keyword("sink_token_length", None),
    "max_tokens_in_paged_kv_cache": Keyword("max_tokens_in_paged_kv_cache", None),
    "kv_cache_free_gpu_memory_fraction": Keyword("kv_cache_free_gpu_memory_fraction", None),
    "kv_cache_enable_block_reuse": Keyword("kv_cache_enable_block_reuse", None),
    "scheduler_policy": Keyword(None, None),
    "context_chunk_size": Keyword(None, None),
}
AT_EACH_CALL = ("max_attention_window_size", "sink_token_length")  # the Python session takes these in `generate`
BY_CALLS = (*AT_EACH_CALL, "gather_generation_logits")  # and this one only if a request asks for it

# Values that differ from the field's. For TensorRT-LLM, None is "off" where this project has 0, and a top_p of 0 is
# greedy. All greedy requests get the same values, whichever option makes them greedy.
VALUES: dict[str, Callable[[Sampling], Any]] = {
    "temperature": lambda s: s.temperature if s.draws else 1.0,
    "top_k": lambda s: s.top_k if s.draws else 1,
    "top_p": lambda s: (s.top_p or 1.0) if s.draws else 0.0,
    "no_repeat_ngram_size": lambda s: s.no_repeat_ngram_size or None,
    "min_length": lambda s: s.min_length or None,
    "log_probs": lambda s: s.log_probs is not None or s.num_beams > 1,  # they come with the sums of beams
}
PER_PROMPT = ("bad_words", "sequence")  # given by the call, for each of its prompts


def sampling_arguments(sampling: Sampling, runner: str, release: Release) -> dict[str, Any]:
    """Return keywords of `generate` for the options that the prompts of a call share; None is left out."""
    given: dict[str, Any] = {}
    for name, keyword in SAMPLING.items():
        known = keyword.of(runner, release)
        value = VALUES[name](sampling) if name in VALUES else getattr(sampling, name)
        if known is not None and value is not None and name not in PER_PROMPT:
            given[known] = value
    return given


def unsupported(sampling: Sampling, runner: str, release: Release) -> str | None:
    """Return the first option that a runner cannot take, with the reason; None if it can take all."""
    for name, keyword in SAMPLING.items():
        if getattr(sampling, name) != getattr(GREEDY, name) and keyword.of(runner, release) is None:
            return f"asks for {spelled(FLAGS.get(name, name))}: {keyword.why}; drop it"
    if sampling.log_probs:
        return "asks for the most likely tokens beside the chosen ones: TensorRT-LLM's runners report the chosen alone"
    return None


FLAGS = {
    "sequence": "num_return_sequences",
    "log_probs": "output_log_probs_npy",
}  # options with another name
