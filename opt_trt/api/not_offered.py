"""Methods that `LLM` has in vLLM and TensorRT-LLM and lacks here; the error of each names what to use instead."""

from __future__ import annotations

from opt_trt.errors import UserError

BEAMS = "generate(prompts, SamplingParams(use_beam_search=True, best_of=4, n=1, max_tokens=20))"
TEXT = "OPT generates text and does nothing else"
CACHE = "memory is held until close(); open LLM(...) again when it is needed"

METHODS = {
    "chat": "OPT has no chat template: write the conversation as one text and call generate(text)",
    "preprocess_chat": "OPT has no chat template: write the conversation as one text and call generate(text)",
    "beam_search": f"call {BEAMS}",
    "encode": TEXT, "embed": TEXT, "classify": TEXT, "score": TEXT, "reward": TEXT,
    "get_default_sampling_params": "SamplingParams() has the defaults",
    "set_tokenizer": "give LLM(model, tokenizer=DIRECTORY)",
    "llm_engine": "there is no engine behind this object: generate and generate_async may be called from any thread",
    "apply_model": "the model is a compiled engine; describe shows what it holds",
    "collective_rpc": "ranks follow rank 0 by themselves",
    "sleep": CACHE, "wake_up": CACHE,
    "start_profile": "run.py --run_profiling measures, and profile.py tells the parts of a step",
    "stop_profile": "run.py --run_profiling measures, and profile.py tells the parts of a step",
    "reset_prefix_cache": "the KV cache is emptied when LLM(...) is opened again",
    "get_metrics": "outputs have their times in `metrics`",
    "get_stats": "outputs have their times in `metrics`",
    "save": "engines are kept in ~/.cache/opt_trt/engines; build.py writes one to a directory",
    "generate_tokens": "call generate_async",
}  # fmt: skip


class NotOffered(UserError, AttributeError):
    """An attribute that another tool's class has."""


def not_offered(name: str) -> AttributeError:
    """Return the error for a missing attribute of an `LLM`."""
    if name in METHODS:
        return NotOffered(f"LLM has no {name}: {METHODS[name]}")
    return AttributeError(f"'LLM' object has no attribute {name!r}")
