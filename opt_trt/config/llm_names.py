"""The names that the constructors of vLLM, TensorRT-LLM and transformers have for the options of `LLM`."""

from __future__ import annotations

from typing import Any

from opt_trt.config.flags import DTYPE_SPELLINGS
from opt_trt.config.other_names import ANY, OtherName, called, happens, refused

RANKS = (
    "engines of several ranks are made by commands: convert_checkpoint.py --tp_size 2 (or --pp_size), build.py, then "
)
RANKS += "start the program that opens the engine with mpirun -n 2 (docs/multi_node.md)"
BITS = 'give quantization="int8" or "int4" and a model that is not quantized yet'
CACHE = "give kv_cache_free_gpu_memory_fraction, max_tokens_in_paged_kv_cache or kv_cache_enable_block_reuse"
LOCAL = "hubs are not read: give the directory of a local copy"
LORA = "adapters are not loaded: merge the adapter into its base model (merge_and_unload) first"
RUNNER = "OPT generates text and does nothing else"
BUILT = "an engine is compiled once, and build.py has the flags of that"

LLM_NAMES: dict[str, OtherName] = {
    # vLLM
    "max_model_len": called("max_seq_len"),
    "max_num_seqs": called("max_batch_size"),
    "max_num_batched_tokens": called("max_num_tokens"),
    "gpu_memory_utilization": called("kv_cache_free_gpu_memory_fraction"),
    "enable_prefix_caching": called("kv_cache_enable_block_reuse"),
    "num_threads": called("threads"),  # of llama.cpp and CTranslate2
    "intra_threads": called("threads"),
    "trust_remote_code": happens(ANY),  # code of a model's directory is never run, and OPT needs none
    "enforce_eager": happens(ANY),
    "disable_log_stats": happens(True, way="statistics are not logged; outputs have `metrics`"),
    "disable_log_requests": happens(ANY),
    "swap_space": happens(0, way="requests that lose their memory are computed again, never swapped; give 0"),
    "cpu_offload_gb": happens(0, way="weights are not offloaded; give 0"),
    "tokenizer_mode": happens("auto", "fast", "hf", way='tokenizers are those of transformers; give "auto"'),
    "skip_tokenizer_init": happens(False, way="a tokenizer that is there is loaded; detokenize=False leaves out texts"),
    "revision": refused(LOCAL),
    "tokenizer_revision": refused(LOCAL),
    "code_revision": refused(LOCAL),
    "download_dir": happens(ANY),
    "load_format": happens("auto", "safetensors", "pt", way='files say themselves what they are; give "auto"'),
    "pipeline_parallel_size": happens(1, way=RANKS),
    "data_parallel_size": happens(1, way="start one process for each copy of the model"),
    "distributed_executor_backend": happens(ANY),
    "enable_chunked_prefill": happens(True, way="long prompts are always cut; context_chunk_size says how small"),
    "kv_cache_dtype": happens("auto", way='the KV cache has the type of the weights; give "auto"'),
    "block_size": refused("build.py --tokens_per_block is part of an engine; build one and give its directory"),
    "num_gpu_blocks_override": refused("give max_tokens_in_paged_kv_cache"),
    "max_seq_len_to_capture": happens(ANY),
    "max_logprobs": happens(ANY),
    "max_parallel_loading_workers": happens(ANY),
    "disable_custom_all_reduce": happens(ANY),
    "disable_async_output_proc": happens(ANY),
    "use_v2_block_manager": happens(ANY),
    "served_model_name": happens(ANY),
    "task": happens("auto", "generate", way=RUNNER),
    "runner": happens("auto", "generate", way=RUNNER),
    "enable_lora": refused(LORA),
    "max_lora_rank": happens(ANY),
    "max_loras": happens(ANY),
    "speculative_config": refused("there is no speculative decoding"),
    "speculative_model": refused("there is no speculative decoding"),
    "hf_overrides": refused("edit config.json in the model's directory"),
    "compilation_config": refused(BUILT),
    "scheduling_policy": happens("fcfs", way="callers take turns, and scheduler_policy says how memory is shared"),
    "limit_mm_per_prompt": happens(ANY),
    # TensorRT-LLM
    "kv_cache_config": refused(CACHE),
    "build_config": refused("give max_batch_size, max_input_len, max_seq_len and max_num_tokens here"),
    "quant_config": refused(BITS),
    "scheduler_config": refused("give scheduler_policy and context_chunk_size"),
    "backend": refused("the engine says which backend runs it: build.py --backend"),
    "max_beam_width": happens(ANY),  # beams are sequences of the batch, whatever their number
    "fast_build": happens(ANY),
    "enable_build_cache": happens(True, way="engines are always kept; remove them from ~/.cache/opt_trt/engines"),
    "enable_chunked_context": happens(True, way="long prompts are always cut; context_chunk_size says how small"),
    "cuda_graph_config": happens(ANY),
    "disable_overlap_scheduler": happens(ANY),
    "peft_cache_config": refused(LORA),
    "gather_generation_logits": refused("give SamplingParams(logprobs=...), or use run.py --output_logits_npy"),
    # transformers
    "torch_dtype": called("dtype"),
    "device_map": OtherName("device", idle=(None, "auto")),
    "low_cpu_mem_usage": happens(ANY),
    "local_files_only": happens(ANY),
    "use_safetensors": happens(ANY),
    "cache_dir": happens(ANY),
    "attn_implementation": refused("kernels are chosen by measured times: build.py prints them"),
    "load_in_8bit": OtherName(reads=lambda on: {"quantization": "int8"} if on else {}),
    "load_in_4bit": OtherName(reads=lambda on: {"quantization": "int4"} if on else {}),
}


def plain_dtype(value: Any) -> Any:
    """Return our name of a type of weights that may be a type of torch or numpy, or a short name."""
    name = str(getattr(value, "__name__", value)).removeprefix("torch.")
    return None if value is None else DTYPE_SPELLINGS.get(name, name)
