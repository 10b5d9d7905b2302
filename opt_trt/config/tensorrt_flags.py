"""The builder flags that only TensorRT can follow; `backend_answers.py` has what each backend answers to them."""

from __future__ import annotations

from dataclasses import dataclass

from opt_trt.config.flags import DTYPE_SPELLINGS, flag

SWITCH = ("enable", "disable")
DTYPES = ("auto", "float16", "float32", "bfloat16")
GROUP = "of the TensorRT backends (others take the values that ask for what they do anyway)"


@dataclass(frozen=True)
class TensorRtOptions:
    """Flags for `--backend tensorrt_llm` and `tensorrt`; without one, the release's own default holds."""

    tensorrt_llm_version: str | None = flag(
        None, "release whose builder a --dry_run shows; default: the one installed, else the newest known", group=GROUP
    )
    max_beam_width: int = flag(1, "most beams of a request", group=GROUP)
    kv_cache_type: str | None = flag(
        None, "paged, in one piece, or none (context phase only)", choices=("paged", "continuous", "disabled"),
        group=GROUP,
    )  # fmt: skip
    paged_kv_cache: str | None = flag(
        None, "older name: enable is --kv_cache_type paged, disable continuous", choices=SWITCH, bare="enable",
        group=GROUP,
    )  # fmt: skip
    remove_input_padding: str | None = flag(
        None, "pack prompts of different lengths without padding", choices=SWITCH, bare="enable", group=GROUP
    )
    use_paged_context_fmha: str | None = flag(
        None, "context attention reads the paged cache: for prefix reuse and chunked prompts", choices=SWITCH,
        bare="enable", group=GROUP,
    )  # fmt: skip
    context_fmha_fp32_acc: str | None = flag(
        None, "fused context attention accumulates in fp32; of the builder up to 0.11, then of run.py", choices=SWITCH,
        bare="enable", aliases=("enable_context_fmha_fp32_acc",), group=GROUP,
    )  # fmt: skip
    lookup_plugin: str | None = flag(
        None, "embedding lookup by a plugin; up to 0.11", choices=(*DTYPES, "disable"), bare="auto",
        spellings=DTYPE_SPELLINGS, aliases=("use_lookup_plugin",), group=GROUP,
    )  # fmt: skip
    multiple_profiles: str | None = flag(
        None, "several optimization profiles: slower to build, faster without --gemm_plugin", choices=SWITCH,
        bare="enable", group=GROUP,
    )  # fmt: skip
    strip_plan: bool = flag(False, "leave the weights out of the engine", group=GROUP)
    weight_sparsity: bool = flag(False, "use sparse kernels where weights allow it", group=GROUP)
    weight_streaming: bool = flag(False, "keep weights in host memory and stream them", group=GROUP)
    fast_build: bool = flag(False, "build faster, run a little slower", group=GROUP)
    enable_debug_output: bool = flag(False, "keep outputs of all layers", group=GROUP)
    visualize_network: str | None = flag(
        None,
        "directory for a description of the network: ONNX of tensorrt_llm, lists of layers and kernels of tensorrt",
        group=GROUP,
    )
    monitor_memory: bool = flag(False, "say how much memory the build took", group=GROUP)
