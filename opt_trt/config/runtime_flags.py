"""Options for opening engines, TensorRT-LLM's names; and what an engine with our session answers to each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from opt_trt.config.flags import Refusal
from opt_trt.errors import UserError, spelled


@dataclass(frozen=True)
class RuntimeOptions:
    """Options for opening an engine, with the names and defaults of TensorRT-LLM's run.py."""

    use_py_session: bool = False
    debug_mode: bool = False
    enable_context_fmha_fp32_acc: bool = False
    multi_block_mode: bool = True
    cuda_graph_mode: bool = False
    gpu_weights_percent: float = 1.0
    enable_chunked_context: bool = False
    max_attention_window_size: tuple[int, ...] | None = None
    sink_token_length: int | None = None
    fail_fast_on_attention_window_too_large: bool = False
    gather_generation_logits: bool = False  # --output_generation_logits, whatever the engine was built with

    def __post_init__(self) -> None:
        if not 0.0 <= self.gpu_weights_percent <= 1.0:
            raise UserError(f"{spelled('gpu_weights_percent')} must be from 0 to 1, found {self.gpu_weights_percent}")

    def given(self) -> tuple[str, ...]:
        """Return the names of the options that differ from their defaults."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != f.default)


GPU_ONLY = "it has an effect on GPUs only; this engine runs on a CPU"
WHOLE = "OPT attends to the whole sequence"

# The answers of our session on any device. An empty reason: the option has an effect, or asks for what happens anyway.
COMMON: dict[str, Refusal] = {
    "use_py_session": Refusal("", note="--use_py_session: this engine has one session, in Python"),
    "debug_mode": Refusal("it traces TensorRT-LLM's layers", advice=f"give {spelled('log_level')} verbose"),
    "enable_chunked_context": Refusal("", note="--enable_chunked_context: prompts are always cut where a step is full"),
    "max_attention_window_size": Refusal(WHOLE),
    "sink_token_length": Refusal(WHOLE),
    "fail_fast_on_attention_window_too_large": Refusal(WHOLE),
    "gather_generation_logits": Refusal("", note=""),
}  # fmt: skip
EMBEDDED: Mapping[str, Mapping[str, Refusal]] = MappingProxyType({
    "cpu": COMMON | {
        "enable_context_fmha_fp32_acc": Refusal(
            "", note="--enable_context_fmha_fp32_acc: attention always accumulates in fp32 on a CPU"
        ),
        "multi_block_mode": Refusal(GPU_ONLY),
        "cuda_graph_mode": Refusal(GPU_ONLY),
        "gpu_weights_percent": Refusal(GPU_ONLY),
    },
    "cuda": COMMON | {
        "enable_context_fmha_fp32_acc": Refusal("", note=""),  # has an effect there
        "multi_block_mode": Refusal("the blocks that share a sequence's attention were chosen at build time"),
        "cuda_graph_mode": Refusal(
            "", note="--cuda_graph_mode: generation steps are always replayed as CUDA graphs"
        ),
        "gpu_weights_percent": Refusal("all weights lie on the GPU"),
    },
    "tensorrt": COMMON | {
        "enable_context_fmha_fp32_acc": Refusal("TensorRT chooses the type in which its attention sums"),
        "multi_block_mode": Refusal("TensorRT chooses how its attention shares the GPU"),
        "cuda_graph_mode": Refusal("", note=""),
        "gpu_weights_percent": Refusal("", note=""),
    },
})  # fmt: skip


def check_embedded(options: RuntimeOptions, kind: str = "cpu") -> None:
    """Refuse what an engine with our session cannot do, and print a note for what it does anyway.

    The kind is the device of an embedded engine, or `tensorrt`.
    """
    for name in options.given():
        refusal = EMBEDDED[kind][name]
        if refusal.reason:
            option = spelled(name)
            raise UserError(f"{option} is not supported by this engine{refusal.why(option)}")
        if refusal.note:
            print(refusal.note, file=sys.stderr)
