"""The keyword arguments of `LLM`, for editors and type checkers: `LlmOptions`, and other names that are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import torch


class LlmKeywords(TypedDict, total=False):
    """The options of `LLM` beside its tokenizer, and those of `LLM_NAMES` that it takes."""

    dtype: str | torch.dtype | None
    quantization: str | None
    device: str | None
    max_batch_size: int | None
    max_input_len: int | None
    max_seq_len: int | None
    max_num_tokens: int | None
    gather_context_logits: bool | None
    max_tokens_in_paged_kv_cache: int | None
    kv_cache_free_gpu_memory_fraction: float
    kv_cache_enable_block_reuse: bool
    scheduler_policy: str
    context_chunk_size: int | None
    tensor_parallel_size: int | None
    seed: int | None
    # vLLM's, TensorRT-LLM's and transformers' names
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    gpu_memory_utilization: float
    enable_prefix_caching: bool | None
    trust_remote_code: bool
    enforce_eager: bool | None
    disable_log_stats: bool
    disable_log_requests: bool
    swap_space: float
    cpu_offload_gb: float
    tokenizer_mode: str
    skip_tokenizer_init: bool
    revision: str | None
    tokenizer_revision: str | None
    code_revision: str | None
    download_dir: str | None
    load_format: str
    pipeline_parallel_size: int
    data_parallel_size: int
    distributed_executor_backend: str | None
    enable_chunked_prefill: bool | None
    enable_chunked_context: bool | None
    kv_cache_dtype: str
    max_seq_len_to_capture: int
    max_logprobs: int
    max_parallel_loading_workers: int | None
    disable_custom_all_reduce: bool
    disable_async_output_proc: bool
    use_v2_block_manager: bool
    served_model_name: str | None
    task: str
    runner: str
    enable_lora: bool
    max_lora_rank: int
    max_loras: int
    scheduling_policy: str
    limit_mm_per_prompt: object
    max_beam_width: int | None
    fast_build: bool
    enable_build_cache: bool
    cuda_graph_config: object
    disable_overlap_scheduler: bool
    torch_dtype: str | torch.dtype | None
    device_map: str | None
    low_cpu_mem_usage: bool | None
    local_files_only: bool
    use_safetensors: bool | None
    cache_dir: str | None
    load_in_8bit: bool
    load_in_4bit: bool
