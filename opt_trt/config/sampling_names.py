"""The names that vLLM, TensorRT-LLM and transformers have for the options of `SamplingParams`."""

from __future__ import annotations

from typing import Any

from opt_trt.config.other_names import ANY, OtherName, called, happens, refused

SHAPES = "outputs are not constrained by a grammar; allowed_token_ids says which tokens may be chosen"
LOGITS = "give logit_bias, allowed_token_ids, bad_words or a penalty; functions of logits are not called"
TENSORS = "LLM returns no tensors of logits; run.py --output_logits_npy writes them, and logprobs are in outputs"
REASON = "there is no reasoning budget: OPT does not reason in tags"


def _num_beams(number: Any) -> dict[str, Any]:
    return {} if number == 1 else {"use_beam_search": True, "best_of": number}


def _beam_width(number: Any) -> dict[str, Any]:
    """Return a search that returns all its beams, as TensorRT-LLM's does."""
    return {} if number == 1 else {"use_beam_search": True, "best_of": number, "n": number}


def _end_id(token_id: Any) -> dict[str, Any]:
    """Return what ends outputs at this id, or these, alone; -1 is none."""
    ids = token_id if isinstance(token_id, list | tuple) else [token_id]
    return {"ignore_eos": True} | ({} if token_id == -1 else {"stop_token_ids": ids})


SAMPLING_NAMES: dict[str, OtherName] = {
    # TensorRT-LLM
    "max_new_tokens": called("max_tokens"),
    "max_output_len": called("max_tokens"),
    "min_length": called("min_tokens"),
    "random_seed": called("seed"),
    "beam_width": OtherName(idle=(None,), reads=_beam_width),
    "end_id": OtherName(idle=(None,), reads=_end_id),
    "pad_id": happens(ANY),  # outputs are lists of their own length: nothing is padded
    "bad": called("bad_words"),
    "stop_words": called("stop"),
    "bad_words_list": refused("give bad_words, which are text, or logit_bias={id: float('-inf')}"),
    "stop_words_list": refused("give stop, which is text, or stop_token_ids"),
    "bad_token_ids": refused("give logit_bias={id: float('-inf')}"),
    "return_log_probs": OtherName(idle=(None, False), reads=lambda on: {"logprobs": 0}),
    "output_log_probs": OtherName(idle=(None, False), reads=lambda on: {"logprobs": 0}),
    "output_cum_log_probs": OtherName(idle=(None, False), reads=lambda on: {"logprobs": 0}),
    "return_context_logits": refused(TENSORS),
    "return_generation_logits": refused(TENSORS),
    "return_encoder_output": refused("OPT has no encoder"),
    "return_perf_metrics": happens(ANY),  # outputs always have them
    "exclude_input_from_output": happens(True, way="outputs have new tokens only; the prompt is in prompt_token_ids"),
    "embedding_bias": refused("give logit_bias"),
    "apply_batched_logits_processor": refused(LOGITS),
    "top_p_min": refused("top_p does not change from token to token"),
    "top_p_decay": refused("top_p does not change from token to token"),
    "top_p_reset_ids": refused("top_p does not change from token to token"),
    "lookahead_config": refused("there is no speculative decoding"),
    "guided_decoding": refused(SHAPES),
    # vLLM
    "logits_processors": refused(LOGITS),
    "logits_processor": refused(LOGITS),
    "structured_outputs": refused(SHAPES),
    "spaces_between_special_tokens": happens(ANY),  # fast tokenizers, which OPT's are, have no such spaces
    "output_kind": happens(ANY),  # outputs have both: all text so far, and what is new
    "extra_args": refused("there are no further arguments"),
    "skip_clone": happens(ANY),
    "thinking_token_budget": refused(REASON),
    "repetition_detection": refused("give no_repeat_ngram_size or a penalty"),
    # transformers
    "num_beams": OtherName(idle=(None,), reads=_num_beams),
    "num_return_sequences": called("n"),
    "do_sample": OtherName(idle=(None, True), reads=lambda on: {"temperature": 0}),
    "min_new_tokens": called("min_tokens"),
    "max_length": refused("give max_tokens, which counts new tokens only"),
    "stop_strings": called("stop"),
    "eos_token_id": OtherName(idle=(None,), reads=_end_id),
    "pad_token_id": happens(ANY),
    "bad_words_ids": refused("give bad_words, which are text, or logit_bias={id: float('-inf')}"),
    "stopping_criteria": refused("give stop or stop_token_ids"),
    "use_cache": happens(ANY),
    "num_beam_groups": happens(1, way="give beam_search_diversity_rate"),
    "diversity_penalty": happens(0, way="give beam_search_diversity_rate"),
    "typical_p": happens(1, way="give top_p or top_k"),
    "epsilon_cutoff": happens(0, way="give top_p or top_k"),
    "eta_cutoff": happens(0, way="give top_p or top_k"),
    "encoder_repetition_penalty": happens(1, way="penalties count tokens of prompt and output alike"),
    # OpenAI
    "max_completion_tokens": called("max_tokens"),
    "top_logprobs": called("logprobs"),
}  # fmt: skip
