"""The decoder of an engine on a GPU: programs by phase and bucket; steps that only generate are replayed graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol
from weakref import ReferenceType, ref

import torch

from opt_trt.backends.engine import EngineConfig, check_gpu, check_rank
from opt_trt.backends.gpu import visible_gpu
from opt_trt.backends.inductor.decoder import CompiledDecoder
from opt_trt.backends.inductor.parts import Parts, Runnable, load_parts
from opt_trt.backends.inductor.rank_logits import RankLogits
from opt_trt.backends.inductor.step_buffers import StepBuffers
from opt_trt.backends.inductor.variants import CONTEXT, HALF_CONTEXT, Variants, replayed_rows
from opt_trt.config.runtime import RuntimeOptions
from opt_trt.errors import UserError
from opt_trt.graph.programs import stage_programs
from opt_trt.ops import Collectives, ReferenceOps
from opt_trt.plugins.cuda_graphs import capture
from opt_trt.runtime.block_pool import blocks_for
from opt_trt.step import StepInputs, StepOutputs


class Replayable(Protocol):
    """A step that was captured."""

    @property
    def result(self) -> torch.Tensor:
        """What replays write."""
        ...

    def replay(self) -> None:
        """Compute it again from what its inputs hold now."""
        ...


Capture = Callable[[Callable[[], torch.Tensor]], Replayable]


class CudaDecoder(CompiledDecoder):
    """`Decoder` of one GPU. The KV cache must lie on it, and be the same one from step to step.

    Greedy steps bring a logit and a token a sequence back, others whole logits.
    """

    def __init__(
        self, config: EngineConfig, parts: Parts, context: str, captured: Capture, rank: int = 0,
        collectives: Collectives | None = None,
    ) -> None:  # fmt: skip
        """`context` is the phase, CONTEXT or HALF_CONTEXT, that prompts are computed in."""
        collectives = collectives or ReferenceOps()
        super().__init__(config, parts, rank, collectives)
        model = config.pretrained_config
        self._device = parts.device
        self._constants = [constant.to(self._device) for constant in self._constants]
        self.spec = replace(self.spec, device=self._device.type)
        self._logits = RankLogits(model.mapping, rank, model.vocab_size, collectives, is_local=False)
        self._variants, self._context = Variants.of(model, config.build_config), context
        self._width = blocks_for(self.spec.max_seq_len, self.spec.tokens_per_block)
        self._capture = captured
        self._buffers: dict[int, StepBuffers] = {}  # by sequences
        self._graphs: dict[tuple[int, bool], Replayable] = {}  # by sequences, and whether the step is greedy
        self._captured_cache: ReferenceType[torch.Tensor] | None = None  # its first layer

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`."""
        rows = replayed_rows(inputs)
        if rows is not None:
            joined = self._replayed(rows, inputs, kv_cache)[: len(inputs.kv_lens)]
            return self._logits.outputs(joined.cpu(), inputs, None)
        inputs = moved(inputs, self._device)
        x = self._loop(self._embed(inputs), inputs, kv_cache)
        hidden = self._hidden(x, inputs)
        joined = self._joined(x, inputs).cpu()
        return self._logits.outputs(joined, inputs, None if hidden is None else hidden.cpu())

    def _replayed(self, rows: int, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        """What `RankLogits.join` gives of a step, and of the rows that fill it up."""
        if self._captured_cache is None or self._captured_cache() is not kv_cache[0]:
            self._graphs.clear()
            self._captured_cache = ref(kv_cache[0])  # the session may free it
        buffers = self._buffers.get(rows) or StepBuffers(rows, self._width, self._device.type)
        self._buffers[rows] = buffers
        buffers.fill(inputs)
        key = (rows, inputs.greedy)
        if key not in self._graphs:
            fixed = replace(buffers.inputs, greedy=inputs.greedy)
            self._graphs[key] = self._capture(lambda: self._whole(fixed, kv_cache))
        self._graphs[key].replay()
        return self._graphs[key].result

    def _whole(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._joined(self._loop(self._embed(inputs), inputs, kv_cache), inputs)

    def _program(self, kind: str, inputs: StepInputs) -> Runnable:
        """See `CompiledDecoder._program`."""
        variants = self._variants
        name = variants.head_of(inputs) if kind == "head" else variants.layer_of(inputs, self._context)
        return self._programs[name]


def moved(inputs: StepInputs, device: torch.device) -> StepInputs:
    """The same step in the memory of a device."""
    values: dict[str, Any] = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return StepInputs(**(values | {name: tensor.to(device) for name, tensor in tensors.items()}))


def context_phase(config: EngineConfig, options: RuntimeOptions) -> str:
    """How prompts are attended to: fp16 products are summed in fp16, unless `--enable_context_fmha_fp32_acc`."""
    halves = config.pretrained_config.dtype == "float16" and not options.enable_context_fmha_fp32_acc
    return HALF_CONTEXT if halves else CONTEXT


def on_gpu(weight: torch.Tensor) -> torch.Tensor:
    """A weight in the memory of the current GPU."""
    return weight.to("cuda")


def gpu_parts(engine_dir: Path, config: EngineConfig, rank: int) -> Parts:
    """What a rank needs of an engine, on the current GPU; `UserError` if it is not the rank's, or too large."""
    check_rank(engine_dir, config, rank)
    model = config.pretrained_config
    kinds = stage_programs(model.mapping, model.mapping.pp_rank(rank))
    names = Variants.of(model, config.build_config).names(kinds)
    try:
        return load_parts(engine_dir, config, rank, names, on_gpu)
    except torch.OutOfMemoryError as error:
        free = torch.cuda.mem_get_info()[0]
        raise UserError(
            f"the weights of {engine_dir} do not fit the GPU's memory, of which {free / 2**30:.1f} GiB are left; "
            "end what else runs there, or convert with --use_weight_only and build again"
        ) from error


def graphs() -> Capture:
    """Captures steps into memory that they share: no two of them are ever replayed together."""
    return functools.partial(capture, pool=torch.cuda.graph_pool_handle())


def open_cuda_decoder(engine_dir: Path, config: EngineConfig, options: RuntimeOptions) -> CudaDecoder:
    """Open an engine on the current GPU after checking that it was built for such a one; weights are copied there."""
    check_gpu(engine_dir, config, visible_gpu())
    return CudaDecoder(config, gpu_parts(engine_dir, config, 0), context_phase(config, options), graphs())
