"""The flags that `run.py` and `summarize.py` share: tokenizer, sampling, memory and runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opt_trt.config.convert_flags import RENAMED
from opt_trt.config.flags import INPUT, KV_CACHE, LOG_LEVELS, OUTPUT, TENSORRT, Logged, Refusal, ThreadFlags, flag
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.sampling import Sampling
from opt_trt.config.sampling_options import SamplingOptions, options_of
from opt_trt.config.scheduling import POLICIES, Scheduling
from opt_trt.errors import UserError

NO_LORA = "LoRA adapters are not applied to OPT (TensorRT-LLM's own OPT class drops them)"
NO_DRAFT = "speculative decoding is not offered for OPT"

SESSION_REFUSED: dict[str, Refusal] = {
    "beam_width_array": Refusal("a search has the same number of beams at every token", advice="give --num_beams"),
    "no_prompt_template": Refusal("", ("",)),
    "prompt_table_path": Refusal("prompt tables are not supported"),
    "prompt_tasks": Refusal("prompt tables are not supported"),
    "num_prepend_vtokens": Refusal("prompt tables are not supported"),
    "lora_dir": Refusal(NO_LORA),
    "lora_task_uids": Refusal(NO_LORA),
    "lora_ckpt_source": Refusal(NO_LORA),
    "hf_model_location": Refusal(RENAMED, advice="give --hf_model_dir"),
    "tokenizer": Refusal(RENAMED, advice="give --tokenizer_dir"),
    "tokenizer_path": Refusal(RENAMED, advice="give --tokenizer_dir"),
    "tokenizer_type": Refusal("the type is read from the tokenizer's own files", ("auto",)),
    "vocab_file": Refusal("a tokenizer is a directory, with vocab.json and merges.txt", advice="give --tokenizer_dir"),
    "gpus_per_node": Refusal("the launcher sets the ranks of a host: mpirun -N, or slots in --hostfile"),
    "cross_kv_cache_fraction": Refusal("OPT has no encoder", ("0.5",)),
    "return_all_generated_tokens": Refusal("streaming returns new tokens only"),
    "medusa_choices": Refusal(NO_DRAFT),
    "eagle_choices": Refusal(NO_DRAFT),
    "lookahead_config": Refusal(NO_DRAFT),
    "draft_target_model_config": Refusal(NO_DRAFT),
    "prompt_lookup_config": Refusal(NO_DRAFT),
    "ngram_config": Refusal(NO_DRAFT),
    "language_task_uids": Refusal("OPT has no language adapters"),
}

NEVER_ENDS = -1  # the --end_id that switches end tokens off
BOOLEANS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
RUNTIME_FLAGS = (
    "use_py_session", "debug_mode", "enable_context_fmha_fp32_acc", "cuda_graph_mode", "gpu_weights_percent",
    "enable_chunked_context", "max_attention_window_size", "sink_token_length",
)  # fmt: skip


@dataclass(frozen=True)
class TextFlags:
    """The flags for turning text into token ids, and for ids with a special meaning."""

    tokenizer_dir: str | None = flag(
        None, "directory of the tokenizer; default: --hf_model_dir, else the one kept with the engine", group=INPUT
    )
    hf_model_dir: str | None = flag(None, "directory of the Hugging Face model", aliases=("model_dir",), group=INPUT)
    no_add_special_tokens: bool = flag(False, "do not put </s> before the prompt", group=INPUT)
    max_input_length: int | None = flag(
        None,
        "cut prompts to this many tokens, from the left; default: what the engine takes beside the output",
        group=INPUT,
    )
    end_id: tuple[int, ...] | None = flag(
        None,
        "tokens that end a sequence; -1: none; default: those of the model, usually </s>",
        nargs="+",
        group=OUTPUT,
    )
    pad_id: int | None = flag(None, "token used as padding; default: the model's <pad>", group=OUTPUT)


@dataclass(frozen=True)
class SessionConfig(SamplingOptions, TextFlags, ThreadFlags, Logged):
    """The flags that both scripts have."""

    max_tokens_in_paged_kv_cache: int | None = flag(None, "size of the KV cache in tokens", group=KV_CACHE)
    kv_cache_free_gpu_memory_fraction: float = flag(
        0.9,
        "share of the free memory of the engine's device the KV cache may take",
        group=KV_CACHE,
    )
    kv_cache_enable_block_reuse: bool = flag(
        False, "keep blocks of the KV cache for prompts with the same beginning", group=KV_CACHE
    )
    scheduler_policy: str = flag(
        POLICIES[0], "reserve all KV cache a request may need, or start over the newest request when it is full",
        choices=POLICIES,
        group=KV_CACHE,
    )  # fmt: skip
    context_chunk_size: int | None = flag(
        None,
        "most prompt tokens in a step in which other requests generate; default: 3 for every 2 of them, at least 16",
        group=KV_CACHE,
    )
    use_py_session: bool = flag(False, "TensorRT engines: run the Python session, not the C++ session", group=TENSORRT)
    enable_context_fmha_fp32_acc: bool = flag(
        False, "engines on GPUs: accumulate context attention in fp32", group=TENSORRT
    )
    multi_block_mode: str = flag(
        "True",
        "TensorRT engines: share a sequence's attention among blocks of threads",
        choices=tuple(BOOLEANS),
        group=TENSORRT,
    )
    cuda_graph_mode: bool = flag(False, "TensorRT engines: replay generation steps as CUDA graphs", group=TENSORRT)
    gpu_weights_percent: float = flag(
        1.0, "TensorRT engines: share of the weights kept on the GPU, 0 to 1", group=TENSORRT
    )
    enable_chunked_context: bool = flag(
        False, "TensorRT engines: cut prompts that do not fit into a step", group=TENSORRT
    )
    max_attention_window_size: tuple[int, ...] | None = flag(
        None,
        "TensorRT engines: attend to this many newest tokens; one number, or one for each layer in turn",
        nargs="+",
        group=TENSORRT,
    )
    sink_token_length: int | None = flag(
        None,
        "TensorRT engines: number of first tokens that stay in the attention window",
        group=TENSORRT,
    )
    debug_mode: bool = flag(
        False, "TensorRT engines: keep the tensors of every step (with the Python session)", group=TENSORRT
    )
    log_level: str = flag("info", "what to print; verbose adds tracebacks", choices=LOG_LEVELS)

    def runtime_options(self) -> RuntimeOptions:
        """Return the options for opening a TensorRT engine."""
        values = {name: getattr(self, name) for name in RUNTIME_FLAGS}
        return RuntimeOptions(multi_block_mode=BOOLEANS[self.multi_block_mode], **values)

    def scheduling(self) -> Scheduling:
        """Return how requests share the session."""
        return Scheduling(self.scheduler_policy, self.context_chunk_size, self.kv_cache_enable_block_reuse)

    def sampling(self, **more: Any) -> Sampling:
        """Return how tokens are chosen, by the flags and by further fields; `UserError` if they contradict."""
        return Sampling(**{name: getattr(self, name) for name in options_of(SamplingOptions)}, **more)

    def __post_init__(self) -> None:
        self.sampling()
        self.scheduling()
        self.runtime_options()
        self.check_threads()
        if self.end_id is not None and len(self.end_id) > 1 and NEVER_ENDS in self.end_id:
            raise UserError(f"--end_id {NEVER_ENDS} stands for no token at all; give it alone")
        if self.max_input_length is not None and self.max_input_length < 1:
            raise UserError(f"--max_input_length must be at least 1, found {self.max_input_length}")
        if not 0.0 < self.kv_cache_free_gpu_memory_fraction <= 1.0:
            raise UserError(
                "--kv_cache_free_gpu_memory_fraction must be above 0 and at most 1, "
                f"found {self.kv_cache_free_gpu_memory_fraction}"
            )
