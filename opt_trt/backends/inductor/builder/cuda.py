"""The part of a build that is a GPU's: tactics among Triton's kernels, programs by phase and bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from opt_trt.backends.inductor.builder.cuda_programs import CudaPrograms, tactics_of
from opt_trt.backends.inductor.builder.layout import engine_tensors
from opt_trt.backends.inductor.builder.limits import Resolved
from opt_trt.backends.inductor.builder.target import Made, timings
from opt_trt.backends.inductor.compiler.compile import open_inductor
from opt_trt.backends.inductor.compiler.targets import for_gpu
from opt_trt.backends.inductor.decoder.program_table import Variants
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.flags import Refusal, refuse_given
from opt_trt.errors import UserError
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
ON_CPU = "give --device cpu"
REFUSED: Mapping[str, Refusal] = {
    "target_isa": Refusal("it names instructions of a processor", advice=ON_CPU),
    "deterministic": Refusal("on a GPU sums are taken in another order for other numbers of tokens", advice=ON_CPU),
    "context_int8": Refusal("kernels of a GPU keep activations", advice=ON_CPU),
    "opt_num_tokens": Refusal("every bucket of tokens has tactics of its own on a GPU"),
    "context_fmha": Refusal("prompts are always attended to by a fused kernel on a GPU", ("enable",)),
    "gpt_attention_plugin": Refusal("no library attends to a paged KV cache", ("auto", "float16", "bfloat16")),
    "context_fmha_fp32_acc": Refusal("an engine has both kinds of sums", advice=FP32_ACC),
}
MOST_HEAD_SIZE = 128
TYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class CudaMaker:
    """`Maker` for a GPU."""

    gpu: Gpu
    device: str = "cuda"  # of the tensors that tactics are tried on, which triton's interpreter takes on a CPU
    stages: tuple[str, ...] = ("tactics", "programs")
    keeps_weights: str = "copied to the GPU"

    def describe(self) -> str:
        """See `Described.describe`."""
        return f"cuda, {self.gpu}"

    def to_compile(self) -> str:
        """See `Described.to_compile`."""
        return "programs embedding, layer, head; the last two by phase and bucket of tokens"

    def make(self, ranks: Sequence[Checkpoint], config: BuildConfig, limits: Resolved, progress: Progress) -> Made:
        """See `Maker.make`."""
        compilation = for_gpu(self.gpu, kernel_key())  # before tactics take their time, headers may be missing
        variants = Variants.of(limits.model, limits.build_config)
        plan, table = self._choose_tactics(limits, config, variants)
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
                for spec in CudaPrograms(limits.model, variants, plan, shapes, collectives).specs()
            }
        device = {
            "type": "cuda", "gpu": self.gpu.name, "capability": self.gpu.capability, "torch": torch.__version__,
            "triton": TRITON_VERSION,
        }  # fmt: skip
        return Made(plan, table, programs, device, None)

    def _choose_tactics(
        self, limits: Resolved, config: BuildConfig, variants: Variants
    ) -> tuple[TacticPlan, list[TunedProblem]]:
        policy = CudaPolicy(
            gemm=config.gemm_plugin != "disable",
            max_sequences=variants.sequences,
            max_num_tokens=variants.tokens,
            max_logits=variants.logits,
            tokens_per_block=config.tokens_per_block,
            lm_head_precision=config.lm_head_precision,
        )
        with timings(config, f"{self.gpu} {kernel_key()} torch {torch.__version__}", GraphClock()) as cache:
            return tune(limits.model, policy, TuningBench(cache, self.device))


def check_cuda(model: ModelConfig, config: BuildConfig) -> None:
    """Refuse flags and checkpoints that no engine on a GPU is built of."""
    refuse_given(config, REFUSED)
    advice = "or give --device cpu"
    if model.dtype not in TYPES:
        raise UserError(
            f"{config.checkpoint_dir} is of {model.dtype}, engines on a GPU compute in {' or '.join(TYPES)}; "
            f"convert it with --dtype float16, {advice}"
        )
    if model.head_size > MOST_HEAD_SIZE:
        raise UserError(
            f"{config.checkpoint_dir} has heads of {model.head_size}, kernels of a GPU take up to {MOST_HEAD_SIZE}; "
            "give --device cpu"
        )
