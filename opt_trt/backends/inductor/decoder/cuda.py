"""The decoder of an engine on a GPU: programs by phase and bucket; steps that only generate are replayed graphs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from opt_trt.backends.engine import EngineConfig, check_gpu, check_rank
from opt_trt.backends.inductor.decoder.captured_steps import Capture, CapturedSteps
from opt_trt.backends.inductor.decoder.launch import Enqueue, Launch
from opt_trt.backends.inductor.decoder.loading import RankModel, load_rank
from opt_trt.backends.inductor.decoder.lookahead import Lookahead
from opt_trt.backends.inductor.decoder.program_table import CONTEXT, HALF_CONTEXT, CudaProgramTable, replayed_rows
from opt_trt.backends.inductor.decoder.rank_forward import RankForward, StageOutputs, decoder_spec
from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.errors import UserError, spelled
from opt_trt.graph.programs import stage_programs
from opt_trt.host.disk import size_text
from opt_trt.ops import Collectives, ReferenceOps
from opt_trt.plugins.cuda.gpu import visible_gpu
from opt_trt.plugins.cuda.graphs import SharedCaptures, put
from opt_trt.step import StepInputs, StepOutputs


class CudaDecoder:
    """`Decoder` of one GPU.

    Of a step that chooses tokens, one logit and one token a sequence come back from the GPU; of other steps, whole
    logits. While the session looks at the tokens of such a step, the GPU computes the next one, see `Lookahead`.
    """

    def __init__(self, forward: RankForward, capture: Capture, enqueue: Enqueue) -> None:
        """Compute by `forward`; `enqueue` gives the GPU work."""
        self.forward = forward
        self.spec = replace(decoder_spec(forward), draws=True, begins_early=True)
        self._enqueue = enqueue
        self._captured = CapturedSteps(
            self.spec, forward.model.device, capture, lambda *step: forward.run(*step).logits
        )
        self._lookahead = Lookahead(self.spec)

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`."""
        return self.forward.step_outputs(self._lookahead.step(inputs, kv_cache, self._launch), inputs)

    def _launch(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor], before: Launch | None = None) -> Launch:
        """Give the GPU a step. If `before` is given, input ids are rows of the tokens that it has chosen."""
        rows = replayed_rows(inputs)
        if rows is None:
            assert before is None, "only captured steps take their tokens from the step before"
            return Launch(lambda: self.forward.run(self.forward.place(inputs), kv_cache), inputs, self._enqueue)
        buffers = self._captured.buffers(rows)
        packed = buffers.packed(inputs)

        def replay() -> StageOutputs:
            buffers.load(packed, None if before is None else before.chosen)
            return StageOutputs(self._captured.replay(rows, inputs, kv_cache), None)

        return Launch(replay, inputs, self._enqueue)


def cuda_forward(
    config: EngineConfig, model: RankModel, context: str, rank: int = 0, collectives: Collectives | None = None
) -> RankForward:
    """Return the forward pass of a rank whose weights lie on a GPU.

    `context` is the phase that prompts are computed in: CONTEXT or HALF_CONTEXT.
    """
    sizes = config.pretrained_config
    table = CudaProgramTable.of(sizes, config.build_config)

    def program_name(kind: str, inputs: StepInputs) -> str:
        return table.head_of(inputs) if kind == "head" else table.layer_of(inputs, context)

    rank_logits = RankLogits(sizes.mapping, rank, sizes.vocab_size, collectives or ReferenceOps(), is_local=False)
    place = functools.partial(to_device, device=model.device)
    return RankForward(config, model, rank_logits, rank=rank, program_name=program_name, place=place)


def to_device(inputs: StepInputs, device: torch.device) -> StepInputs:
    """Copy a step into the memory of a device. This does not wait until a GPU has done what it was given before."""
    values: dict[str, Any] = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    there = {
        name: tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
        for name, tensor in tensors.items()
    }
    return StepInputs(**(values | there))


def context_phase(config: EngineConfig, options: RuntimeOptions) -> str:
    """Return the phase of prompts: attention sums in fp16 if the model is fp16 and the options do not forbid it."""
    halves = config.pretrained_config.dtype == "float16" and not options.enable_context_fmha_fp32_acc
    return HALF_CONTEXT if halves else CONTEXT


def on_gpu(weight: torch.Tensor) -> torch.Tensor:
    """Copy a weight into the memory of the current GPU."""
    return weight.to("cuda")


def gpu_model(engine_dir: Path, config: EngineConfig, rank: int) -> RankModel:
    """Load a rank onto the current GPU; `UserError` if the files are of another rank, or too large for the GPU."""
    check_rank(engine_dir, config, rank)
    model = config.pretrained_config
    kinds = stage_programs(model.mapping, model.mapping.pp_rank(rank))
    names = CudaProgramTable.of(model, config.build_config).names(kinds)
    try:
        return load_rank(engine_dir, config, rank, names, on_gpu)
    except torch.OutOfMemoryError as error:
        free = torch.cuda.mem_get_info()[0]
        raise UserError(
            f"the weights of {engine_dir} do not fit the GPU's memory, which has {size_text(free)} left; "
            f"end other programs on this GPU, or convert with {spelled('use_weight_only')} and build again"
        ) from error


def open_cuda_decoder(engine_dir: Path, config: EngineConfig, options: RuntimeOptions) -> CudaDecoder:
    """Open an engine on the current GPU, after checking that it was built for such a GPU; copy its weights there."""
    check_gpu(engine_dir, config, visible_gpu())
    forward = cuda_forward(config, gpu_model(engine_dir, config, 0), context_phase(config, options))
    return CudaDecoder(forward, SharedCaptures(), put)
