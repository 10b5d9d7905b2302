"""Compile for a GPU: tactics among Triton's kernels, and programs by phase and bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from opt_trt.backends.inductor.builder.cuda_programs import CudaPrograms, tactics_of
from opt_trt.backends.inductor.builder.layout import engine_tensors
from opt_trt.backends.inductor.builder.limits import ResolvedLimits
from opt_trt.backends.inductor.builder.target import Compiled, timings
from opt_trt.backends.inductor.compiler.compile import open_inductor
from opt_trt.backends.inductor.compiler.targets import for_gpu
from opt_trt.backends.inductor.decoder.program_table import CudaProgramTable
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.flags import Refusal, refuse_given
from opt_trt.errors import UserError, spelled
from opt_trt.graph.programs import GraphShapes
from opt_trt.host.cache import cache_dir
from opt_trt.host.progress import Progress
from opt_trt.model.config import ModelConfig
from opt_trt.ops import ALONE
from opt_trt.plugins.collectives.cuda_group import GroupCollectives, group_in_name_only
from opt_trt.plugins.cuda.gpu import Gpu
from opt_trt.plugins.cuda.graphs import GraphClock
from opt_trt.plugins.cuda.kernel_launch import TRITON_VERSION, kernel_key
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tune.common import TunedProblem
from opt_trt.plugins.tune.cuda import CudaPolicy, TuningBench, tune

FP32_ACC = "give run.py --enable_context_fmha_fp32_acc"
ON_CPU = f"give {spelled('device')} cpu"
REFUSED: Mapping[str, Refusal] = {
    "target_isa": Refusal("it names instructions of a processor", advice=ON_CPU),
    "deterministic": Refusal("on a GPU sums are taken in another order if the number of tokens differs", advice=ON_CPU),
    "context_int8": Refusal("kernels of a GPU do not round activations to int8", advice=ON_CPU),
    "opt_num_tokens": Refusal("on a GPU every bucket of tokens has its own tactics"),
    "context_fmha": Refusal("on a GPU a fused kernel always computes the attention of prompts", ("enable",)),
    "gpt_attention_plugin": Refusal(
        "no library computes attention over a paged KV cache", ("auto", "float16", "bfloat16")
    ),
    "context_fmha_fp32_acc": Refusal("an engine contains programs for both kinds of sums", advice=FP32_ACC),
}
MOST_HEAD_SIZE = 128
TYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class CudaTarget:
    """`Target` of a GPU."""

    gpu: Gpu
    device: str = "cuda"  # that of the tensors that tactics are timed on; Triton's interpreter takes a CPU's
    stages: tuple[str, ...] = ("tactics", "programs")
    keeps_weights: str = "copied to the GPU"

    def describe(self) -> str:
        """See `TargetDescription.describe`."""
        return f"cuda, {self.gpu}"

    def to_compile(self) -> str:
        """See `TargetDescription.to_compile`."""
        return "programs embedding, layer, head; the last two by phase and bucket of tokens"

    def compile(
        self, ranks: Sequence[Checkpoint], config: BuildConfig, limits: ResolvedLimits, progress: Progress
    ) -> Compiled:
        """See `Target.compile`."""
        compilation = for_gpu(self.gpu, kernel_key())  # first, because it fails at once if headers are missing
        table = CudaProgramTable.of(limits.model, limits.build_config)
        plan, tuned = self._choose_tactics(limits, config, table)
        progress.done()
        ends = engine_tensors(ranks[0], plan) | engine_tensors(ranks[-1], plan)  # the first and the last stage
        weights = {name: (t.shape, t.dtype) for name, t in ends.items()}
        activations = getattr(torch, limits.model.dtype)
        shapes = GraphShapes(limits.build_config.tokens_per_block, weights, activations, self.device)
        tp_size = limits.model.mapping.tp_size
        collectives = GroupCollectives(tp_size) if tp_size > 1 else ALONE
        with open_inductor(compilation, cache_dir()) as compilers, group_in_name_only(tp_size):
            programs = {
                spec.name: compilers.compile(spec, tactics_of(spec))
                for spec in CudaPrograms(limits.model, table, plan, shapes, collectives).specs()
            }
        device = {
            "type": "cuda", "gpu": self.gpu.name, "capability": self.gpu.capability, "torch": torch.__version__,
            "triton": TRITON_VERSION,
        }  # fmt: skip
        return Compiled(plan, tuned, programs, device, None)

    def _choose_tactics(
        self, limits: ResolvedLimits, config: BuildConfig, table: CudaProgramTable
    ) -> tuple[TacticPlan, list[TunedProblem]]:
        policy = CudaPolicy(
            gemm=config.gemm_plugin != "disable",
            max_sequences=table.sequences,
            max_num_tokens=table.tokens,
            max_logits=table.logits,
            tokens_per_block=config.tokens_per_block,
            lm_head_precision=config.lm_head_precision,
        )
        with timings(config, f"{self.gpu} {kernel_key()} torch {torch.__version__}", GraphClock()) as cache:
            return tune(limits.model, policy, TuningBench(cache, self.device))


def check_cuda(model: ModelConfig, config: BuildConfig) -> None:
    """Refuse flags and checkpoints that engines on a GPU cannot be built from."""
    refuse_given(config, REFUSED)
    advice = f"or give {spelled('device')} cpu"
    if model.dtype not in TYPES:
        raise UserError(
            f"{config.checkpoint_dir} is of {model.dtype}, engines on a GPU compute in {' or '.join(TYPES)}; "
            f"convert it with {spelled('dtype')} float16, {advice}"
        )
    if model.head_size > MOST_HEAD_SIZE:
        raise UserError(
            f"{config.checkpoint_dir} has heads of {model.head_size}, kernels of a GPU take up to {MOST_HEAD_SIZE}; "
            f"give {spelled('device')} cpu"
        )
