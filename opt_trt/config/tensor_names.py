"""The arguments of transformers' `generate` beside the options of `generate_ids`."""

from __future__ import annotations

from opt_trt.config.other_names import ANY, OtherName, called, happens, refused
from opt_trt.config.sampling_names import LOGITS

NO_TENSORS = "call generate with SamplingParams(logprobs=...), which tells log-probabilities"
STOPS = "give stop_strings or eos_token_id"

TENSOR_NAMES: dict[str, OtherName] = {
    "inputs": called("input_ids"),
    "tokenizer": happens(ANY),  # of stop_strings: the model's own is there
    "use_cache": happens(ANY),
    "synced_gpus": happens(ANY),
    "cache_implementation": happens(ANY),
    "token_type_ids": happens(ANY),
    "bos_token_id": happens(ANY),  # prompts have it already
    "decoder_start_token_id": happens(ANY),
    "max_time": refused("end the call from another thread by close()"),
    "inputs_embeds": refused("give input_ids"),
    "logits_processor": refused(LOGITS),
    "stopping_criteria": refused(STOPS),
    "prefix_allowed_tokens_fn": refused("call generate with SamplingParams(allowed_token_ids=...)"),
    "assistant_model": refused("there is no speculative decoding"),
    "negative_prompt_ids": refused("there is no guidance by a second prompt"),
    "guidance_scale": happens(1, way="there is no guidance by a second prompt"),
    "output_scores": refused(NO_TENSORS),
    "output_logits": refused(NO_TENSORS),
    "output_attentions": refused("engines do not keep them"),
    "output_hidden_states": refused("engines do not keep them"),
    "num_beam_groups": happens(1, way="call generate with SamplingParams(beam_search_diversity_rate=...)"),
    "diversity_penalty": happens(0, way="call generate with SamplingParams(beam_search_diversity_rate=...)"),
    "constraints": refused("outputs are not constrained"),
    "force_words_ids": refused("outputs are not constrained"),
    "typical_p": happens(1, way="give top_p or top_k"),
    "epsilon_cutoff": happens(0, way="give top_p or top_k"),
    "eta_cutoff": happens(0, way="give top_p or top_k"),
    "encoder_repetition_penalty": happens(1, way="penalties count tokens of prompt and output alike"),
    "encoder_no_repeat_ngram_size": happens(0, way="give no_repeat_ngram_size"),
    "renormalize_logits": happens(ANY),
    "remove_invalid_values": happens(False, way="requests with numbers that overflow fail by name"),
    "exponential_decay_length_penalty": refused("give max_new_tokens"),
    "suppress_tokens": refused("give bad_words_ids=[[id]]"),
    "begin_suppress_tokens": refused("give bad_words_ids=[[id]], which counts everywhere"),
    "sequence_bias": refused("call generate with SamplingParams(logit_bias=...)"),
    "forced_bos_token_id": refused("put it at the end of the prompt"),
    "forced_eos_token_id": refused("put it behind the outputs"),
    "watermarking_config": refused("outputs have no watermark"),
    "low_memory": happens(ANY),
    "custom_generate": refused("code from elsewhere is never run"),
}  # fmt: skip
