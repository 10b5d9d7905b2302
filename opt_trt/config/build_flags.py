"""The flags of `build.py`: TensorRT-LLM's builder flags for OPT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opt_trt.config.convert_flags import NO_SHARING, PRECISIONS, RENAMED
from opt_trt.config.flags import (
    DTYPE_SPELLINGS,
    IDLE,
    INPUT,
    KERNELS,
    LIMITS,
    LOG_LEVELS,
    LOGITS,
    OUTPUT,
    TARGET,
    Logged,
    Refusal,
    ThreadFlags,
    check_required,
    flag,
    packed_sm_flag,
)
from opt_trt.config.tensorrt_flags import DTYPES, SWITCH, TensorRtOptions
from opt_trt.errors import UserError

PLUGIN_VALUES = (*DTYPES, "disable")
DEVICES = ("cpu", "cuda")
BACKENDS = ("auto", "tensorrt_llm", "tensorrt", "inductor")
TARGET_ISAS = ("avx512", "avx2", "generic")  # the names that engines record
SIZES = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "opt_num_tokens", "tokens_per_block",
         "max_output_len", "max_beam_width", "workers")  # fmt: skip
NOT_OPT = "OPT has no use for it"
NO_LORA = "LoRA adapters are not applied to OPT (TensorRT-LLM's own OPT class drops them)"
NO_DRAFT = "speculative decoding is not offered for OPT"
NO_FP8 = "there is no fp8 quantization of OPT"
OWN_RANKS = "every backend has a single way to exchange data between ranks"
LEFT = "newer releases of TensorRT-LLM do not have this option"
IN_CHECKPOINT = "the checkpoint says it"
NO_KV_QUANT = "the KV cache has the type of the model"
ACTIVATIONS = "activations are not quantized in advance"

# The flags of NVIDIA's examples/opt/build.py and examples/gpt/build.py before there was trtllm-build.
OLD_BUILDER: dict[str, Refusal] = {
    "world_size": Refusal(IN_CHECKPOINT, ("1",), advice="convert with --tp_size"),
    "model_dir": Refusal("weights are converted first", advice="convert with --model_dir"),
    "dtype": Refusal(IN_CHECKPOINT, advice="convert with --dtype"),
    "use_weight_only": Refusal(IN_CHECKPOINT, advice="convert with --use_weight_only"),
    "timing_cache": Refusal(RENAMED, advice="give --input_timing_cache"),
    "use_gemm_plugin": Refusal(RENAMED, advice="give --gemm_plugin"),
    "use_gpt_attention_plugin": Refusal(RENAMED, advice="give --gpt_attention_plugin"),
    "use_layernorm_plugin": Refusal("layer norms have kernels of their own always", ("float16", "float32", "bfloat16")),
    "use_rmsnorm_plugin": Refusal(NOT_OPT),
    "parallel_build": Refusal("ranks share their programs, which are compiled once", advice="give --workers"),
    "use_inflight_batching": Refusal("requests are always batched in flight", ("",)),
    "use_embedding_sharing": Refusal(NO_SHARING),
    "use_prompt_tuning": Refusal("prompt tables are not supported"),
    "int8_kv_cache": Refusal(NO_KV_QUANT),
    "fp8_kv_cache": Refusal(NO_KV_QUANT),
    "enable_fp8": Refusal(NO_FP8),
    "quantized_fp8_model_path": Refusal(NO_FP8),
    "use_smooth_quant": Refusal(ACTIVATIONS, advice="convert with --use_weight_only"),
    "per_token": Refusal(ACTIVATIONS),
    "per_channel": Refusal(ACTIVATIONS),
    "per_group": Refusal("integers have one scale for each output feature"),
    "use_lora_plugin": Refusal(NO_LORA),
    "use_ib_gemm": Refusal(LEFT),
    "enable_qk_half_accum": Refusal("attention always accumulates in fp32"),
    "enable_multi_block_mode": Refusal(LEFT, advice="give --multi_block_mode to run.py"),
    "random_seed": Refusal("a build draws no random numbers"),
} | {
    name: Refusal(IN_CHECKPOINT, advice="convert the model again after changing its config.json")
    for name in ("vocab_size", "n_layer", "n_positions", "n_embd", "n_head", "n_kv_head", "inter_size", "hidden_act",
                 "pre_norm", "post_norm", "do_layer_norm_before", "rotary_pct", "bias")
}  # fmt: skip


@dataclass(frozen=True)
class BuildConfig(TensorRtOptions, ThreadFlags, Logged):
    """Compile a TensorRT-LLM checkpoint into an engine for this machine."""

    checkpoint_dir: str | None = flag(
        None,
        "checkpoint written by convert_checkpoint.py",
        group=INPUT,
        required="a directory written by convert_checkpoint.py",
    )
    packed_sm: int | None = packed_sm_flag()
    output_dir: str = flag("engine_outputs", "engine directory to write; appears only when it is whole", group=OUTPUT)
    backend: str = flag("auto", "compiler and runtime of the engine", choices=BACKENDS, group=TARGET)
    device: str | None = flag(
        None, "where the engine runs: cuda is the GPU of this machine, or one like it; default: cuda where torch sees "
        "one, else cpu", choices=DEVICES,
        group=TARGET,
    )  # fmt: skip
    target_isa: str | None = flag(
        None, "instructions the engine may use, to run elsewhere; default: all of this processor's",
        choices=TARGET_ISAS,
        group=TARGET,
    )  # fmt: skip
    target_sm: tuple[int, ...] | None = flag(
        None, "GPUs that a tensorrt engine runs on, 89 is compute capability 8.9; default: all that TensorRT-RTX knows "
        "from 80 on", nargs="+", group=TARGET,
    )  # fmt: skip
    max_batch_size: int = flag(2048, "most sequences in one step; further requests wait", group=LIMITS)
    max_input_len: int = flag(1024, "longest prompt in tokens", group=LIMITS)
    max_seq_len: int | None = flag(
        None,
        "prompt plus output in tokens; default: the position table",
        aliases=("max_decoder_seq_len",),
        group=LIMITS,
    )
    max_output_len: int | None = flag(None, "longest output in tokens: an older form of --max_seq_len", group=LIMITS)
    max_num_tokens: int = flag(8192, "most packed tokens in one step", group=LIMITS)
    opt_num_tokens: int | None = flag(
        None,
        "number of packed tokens to choose tactics for; default: all buckets count alike",
        group=KERNELS,
    )
    tokens_per_block: int = flag(32, "tokens in one block of the paged KV cache", group=LIMITS)
    gemm_plugin: str = flag(
        "auto", "auto or the checkpoint's dtype: the fastest of own kernels and libraries; disable: libraries only",
        choices=PLUGIN_VALUES, bare="auto", spellings=DTYPE_SPELLINGS,
        group=KERNELS,
    )  # fmt: skip
    gpt_attention_plugin: str = flag(
        "auto", "auto or the checkpoint's dtype: the fastest of own kernels and libraries; disable: libraries only",
        choices=PLUGIN_VALUES, bare="auto", spellings=DTYPE_SPELLINGS,
        group=KERNELS,
    )  # fmt: skip
    context_fmha: str | None = flag(
        None, "fused attention in the context phase; default: on with the attention plugin",
        choices=SWITCH, bare="enable", aliases=("enable_context_fmha",),
        group=KERNELS,
    )  # fmt: skip
    deterministic: bool = flag(
        False,
        "a token's result has the same bits whatever else is in the step: only tactics with a fixed order of sums",
        group=KERNELS,
    )
    context_int8: bool = flag(
        False,
        "with integer weights, products of several tokens may round activations to int8: faster, less exact",
        group=KERNELS,
    )
    logits_dtype: str | None = flag(
        None,
        "type the logits are rounded to; default: the checkpoint's",
        choices=("float16", "float32"),
        spellings=DTYPE_SPELLINGS,
        group=LOGITS,
    )
    lm_head_precision: str | None = flag(
        None, "quantize the head, which makes logits, with a scale per token; default: as the checkpoint has it",
        choices=PRECISIONS,
        group=LOGITS,
    )  # fmt: skip
    gather_context_logits: bool = flag(
        False, "the engine can return logits of prompt tokens (for perplexity)", group=LOGITS
    )
    gather_generation_logits: bool = flag(False, "the engine can return logits of generated tokens", group=LOGITS)
    gather_all_token_logits: bool = flag(False, "both of the above", group=LOGITS)
    use_parallel_embedding: bool = flag(False, "check that the checkpoint was converted with it", group=INPUT)
    embedding_sharding_dim: int | None = flag(
        None,
        "check the axis the checkpoint was converted with",
        choices=("0", "1"),
        group=INPUT,
    )
    input_timing_cache: str | None = flag(
        None,
        "tactic timings to reuse; a missing file is an empty cache; default: those of this user's earlier builds",
        group=KERNELS,
    )
    output_timing_cache: str = flag("model.cache", "file that keeps tactic timings for the next build", group=KERNELS)
    profiling_verbosity: str = flag(
        "layer_names_only",
        "what is printed: the chosen tactics; all tactics, and a profile of a step; nothing",
        choices=("layer_names_only", "detailed", "none"),
        group=OUTPUT,
    )
    retime: bool = flag(
        False, "time all tactics anew, and replace the timings that this user's earlier builds kept", group=KERNELS
    )
    workers: int = flag(1, "ranks whose weights are written at the same time; each holds one tensor in memory")
    dry_run: bool = flag(False, "print the plan, the memory and what would be compiled; write nothing", group=OUTPUT)
    log_level: str = flag("info", "what to print; verbose adds tracebacks", choices=LOG_LEVELS)

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--checkpoint_dir work/checkpoint --output_dir work/engine --max_batch_size 8",
        "--checkpoint_dir work/checkpoint --max_input_len 512 --max_seq_len 1024 --gather_context_logits --dry_run",
    )
    REFUSED: ClassVar[dict[str, Refusal]] = {
        "max_encoder_input_len": Refusal(NOT_OPT, ("1024",)),
        "max_prompt_embedding_table_size": Refusal("prompt tables are not supported", ("0",)),
        "max_multimodal_len": Refusal("prompt tables are not supported", ("0",)),
        "model_config": Refusal("an engine is built from the weights in --checkpoint_dir"),
        "build_config": Refusal("every size has a flag of its own"),
        "model_cls_file": Refusal("only the built-in OPT decoder is compiled"),
        "model_cls_name": Refusal("only the built-in OPT decoder is compiled"),
        "lora_dir": Refusal(NO_LORA),
        "lora_ckpt_source": Refusal(NO_LORA, ("hf",)),
        "lora_target_modules": Refusal(NO_LORA),
        "max_lora_rank": Refusal(NO_LORA, ("64",)),
        "lora_plugin": Refusal(NO_LORA, ("disable",)),
        "dora_plugin": Refusal(NO_LORA, ("disable",)),
        "speculative_decoding_mode": Refusal(NO_DRAFT),
        "max_draft_len": Refusal(NO_DRAFT, ("0",)),
        "bert_attention_plugin": Refusal(NOT_OPT, ("disable", "auto", "float16")),
        "bert_context_fmha_fp32_acc": Refusal(NOT_OPT, ("disable",)),
        "nccl_plugin": Refusal(OWN_RANKS, ("disable", "auto", "float16")),
        "moe_plugin": Refusal(NOT_OPT, ("disable", "auto", "float16")),
        "mamba_conv1d_plugin": Refusal(NOT_OPT, ("disable", "auto", "float16")),
        "fp8_rowwise_gemm_plugin": Refusal(NO_FP8, ("disable",)),
        "gemm_swiglu_plugin": Refusal(NOT_OPT, ("disable",)),
        "low_latency_gemm_plugin": Refusal(NO_FP8, ("disable",)),
        "low_latency_gemm_swiglu_plugin": Refusal(NOT_OPT, ("disable",)),
        "gemm_allreduce_plugin": Refusal(OWN_RANKS, ("disable",)),
        "use_fp8_context_fmha": Refusal("there is no fp8 KV cache", ("disable", "enable"), note=IDLE),
        "fuse_fp4_quant": Refusal("there is no fp4 quantization", ("disable",)),
        "norm_quant_fusion": Refusal(NOT_OPT, ("disable",)),
        "reduce_fusion": Refusal(OWN_RANKS, ("disable",)),
        "user_buffer": Refusal(OWN_RANKS, ("disable",)),
        "pp_reduce_scatter": Refusal(NOT_OPT, ("disable",)),
        "streamingllm": Refusal("OPT's learned positions end at max_position_embeddings", ("disable",)),
        "paged_state": Refusal(NOT_OPT, ("disable", "enable"), note=IDLE),
        "use_fused_mlp": Refusal("OPT's MLP has no gate to fuse", ("", "disable", "enable"), note=IDLE),
        "use_custom_all_reduce": Refusal(LEFT, ("enable",)),
        "enable_xqa": Refusal(LEFT, ("enable",)),
        "multi_block_mode": Refusal(LEFT, ("disable",), advice="give it to run.py"),
        "attention_qk_half_accumulation": Refusal(LEFT, ("disable",)),
        "use_context_fmha_for_generation": Refusal(LEFT, ("disable",)),
        "strongly_typed": Refusal("networks are always strongly typed", ("",)),
        "builder_opt": Refusal(LEFT),
        "builder_force_num_profiles": Refusal(LEFT),
        "weight_only_precision": Refusal("the checkpoint says it", advice="convert with --use_weight_only"),
        "tp_size": Refusal("the checkpoint says it", ("1",), advice="convert with --tp_size"),
        "pp_size": Refusal("the checkpoint says it", ("1",), advice="convert with --pp_size"),
        "auto_parallel": Refusal(LEFT, ("1",)),
        "gpus_per_node": Refusal(LEFT, ("8",)),
        "cluster_key": Refusal(LEFT),
    } | OLD_BUILDER

    def longest_sequence(self, positions: int) -> int:
        """Return prompt plus output in tokens, as given by either flag, for a model with that many positions."""
        if self.max_output_len is not None:
            return self.max_input_len + self.max_output_len
        return positions if self.max_seq_len is None else self.max_seq_len

    def __post_init__(self) -> None:
        check_required(self)
        self.check_threads()
        for name in SIZES:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, found {value}")
        if self.retime and self.input_timing_cache:
            raise UserError("--retime reads no timings, found --input_timing_cache beside it; drop one of the two")
        if None not in (self.max_seq_len, self.max_output_len):
            raise UserError("--max_output_len is --max_seq_len less the prompt: give one of the two")
        if self.context_fmha == "enable" and self.gpt_attention_plugin == "disable":
            raise UserError(
                "--context_fmha enable needs the attention plugin, found --gpt_attention_plugin disable; "
                "drop one of the two"
            )
        if self.context_int8 and (self.deterministic or self.gemm_plugin == "disable"):
            other = "--deterministic" if self.deterministic else "--gemm_plugin disable"
            raise UserError(
                f"--context_int8 chooses kernels by the number of tokens, found {other} beside it; drop one of the two"
            )
        if self.deterministic and "disable" in (self.gemm_plugin, self.gpt_attention_plugin):
            raise UserError(
                "--deterministic needs the plugins' kernels, found --gemm_plugin or --gpt_attention_plugin disable; "
                "drop one of the two"
            )
