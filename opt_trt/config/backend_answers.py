"""The builder flags that a backend cannot follow, and what it answers to each: one table a backend."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from opt_trt.config.flags import Refusal
from opt_trt.errors import spelled

EMBEDDED = f"give {spelled('backend')} inductor"
TENSORRT_ONLY = "a TensorRT builder option without a counterpart in the embedded engine"
NO_LOOKUP = "embedding lookup needs no plugin (removed from TensorRT-LLM too)"
ON_GPUS = "TensorRT engines run on GPUs"
BEAMS = Refusal("beams are sequences of the batch", advice="give --max_batch_size requests * beams")
OTHER_RELEASE = Refusal("it names a release of the other backend", advice="give --backend tensorrt_llm")
OTHER_GPU = "give --backend tensorrt, or --packed_sm if you mean the layout of the weights"
NO_PLUGINS = "TensorRT's compiler makes all kernels of this engine"
OF_THE_DTYPE = ("auto", "float16", "float32", "bfloat16")

# Answers to the flags of `BuildConfig` and `TensorRtOptions`, by backend. Other flags act.
ANSWERS: Mapping[str, Mapping[str, Refusal]] = MappingProxyType({
    "inductor": {
        "target_sm": Refusal("GPU engines are compiled for the GPU of this machine", advice=OTHER_GPU),
        "tensorrt_llm_version": OTHER_RELEASE,
        "max_beam_width": BEAMS,
        "kv_cache_type": Refusal("the KV cache is always paged", ("paged",)),
        "paged_kv_cache": Refusal("the KV cache is always paged", ("enable",)),
        "remove_input_padding": Refusal("inputs are always packed", ("enable",)),
        "use_paged_context_fmha": Refusal("context attention always reads the paged cache", ("enable",)),
        "context_fmha_fp32_acc": Refusal("accumulation is always fp32 here", ("enable",)),
        "lookup_plugin": Refusal(NO_LOOKUP, ("disable",)),
        "multiple_profiles": Refusal("tactics are chosen per bucket of tokens instead", ("disable",)),
        "strip_plan": Refusal(TENSORRT_ONLY),
        "weight_sparsity": Refusal(TENSORRT_ONLY),
        "weight_streaming": Refusal(TENSORRT_ONLY),
        "fast_build": Refusal(TENSORRT_ONLY),
        "enable_debug_output": Refusal(TENSORRT_ONLY),
        "visualize_network": Refusal(TENSORRT_ONLY),
        "monitor_memory": Refusal(TENSORRT_ONLY, advice="give --dry_run, which prints the memory,"),
    },
    "tensorrt": {
        "device": Refusal(ON_GPUS, ("cuda",), advice=EMBEDDED),
        "target_isa": Refusal(ON_GPUS, advice=EMBEDDED),
        "deterministic": Refusal("TensorRT chooses its kernels, and promises no order of sums", advice=EMBEDDED),
        "context_int8": Refusal("its products of integer weights keep activations as they are", advice=EMBEDDED),
        "tokens_per_block": Refusal("a sequence has one block of the cache, for max_seq_len tokens"),
        "gemm_plugin": Refusal(NO_PLUGINS, OF_THE_DTYPE),
        "gpt_attention_plugin": Refusal(NO_PLUGINS, OF_THE_DTYPE),
        "context_fmha": Refusal("TensorRT's compiler fuses attention where it can", ("enable",)),
        "tensorrt_llm_version": OTHER_RELEASE,
        "max_beam_width": BEAMS,
        "kv_cache_type": Refusal("the cache of a sequence is in one piece", ("continuous",)),
        "paged_kv_cache": Refusal("the cache of a sequence is in one piece", ("disable",)),
        "remove_input_padding": Refusal("a generation step has a row for every slot of the cache", ("disable",)),
        "use_paged_context_fmha": Refusal("the cache of a sequence is in one piece", ("disable",)),
        "context_fmha_fp32_acc": Refusal("TensorRT's compiler chooses the type of the sums"),
        "lookup_plugin": Refusal(NO_LOOKUP, ("disable",)),
        "multiple_profiles": Refusal("prompts have one profile and generation another", ("disable",)),
        "strip_plan": Refusal("TensorRT-RTX 1.7 strips weights only where a GPU's driver is installed"),
        "enable_debug_output": Refusal("sessions read logits alone", advice="give --visualize_network DIRECTORY"),
    },
    "tensorrt_llm": {
        "target_sm": Refusal("TensorRT-LLM builds for the GPU of this machine", advice=OTHER_GPU),
        "deterministic": Refusal("TensorRT chooses its tactics by their times alone", advice=EMBEDDED),
        "context_int8": Refusal("TensorRT-LLM's weight-only linears keep activations", advice=EMBEDDED),
        "device": Refusal(ON_GPUS, ("cuda",), advice=EMBEDDED),
        "target_isa": Refusal(ON_GPUS, advice=EMBEDDED),
        "lm_head_precision": Refusal("TensorRT-LLM's OPT has its head in the checkpoint's dtype", advice=EMBEDDED),
    },
})  # fmt: skip

# What TensorRT-RTX answers besides: its kernels are compiled where the engine runs, so a build times none.
RTX_ANSWERS: Mapping[str, Refusal] = MappingProxyType({
    "fast_build": Refusal("all optimization levels of TensorRT-RTX build the same engine"),
    "input_timing_cache": Refusal("TensorRT-RTX times no kernels, so its timing cache is empty"),
    "output_timing_cache": Refusal("TensorRT-RTX times no kernels, so its timing cache is empty"),
})  # fmt: skip
# What TensorRT proper answers besides.
PROPER_ANSWERS: Mapping[str, Refusal] = MappingProxyType({
    "target_sm": Refusal("TensorRT builds for the GPU of this machine", advice="install tensorrt-rtx"),
})  # fmt: skip
