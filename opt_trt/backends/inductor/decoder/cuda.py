"""The decoder of an engine on a GPU: programs by phase and bucket; steps that only generate are replayed graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol
from weakref import ReferenceType, ref

import torch

from opt_trt.backends.engine import EngineConfig, check_gpu, check_rank
from opt_trt.backends.inductor.decoder.compiled import CompiledDecoder
from opt_trt.backends.inductor.decoder.launch import Launch, Put
from opt_trt.backends.inductor.decoder.loading import Parts, Runnable, load_parts
from opt_trt.backends.inductor.decoder.lookahead import Ahead
from opt_trt.backends.inductor.decoder.program_table import CONTEXT, HALF_CONTEXT, Variants, replayed_rows
from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.backends.inductor.decoder.step_buffers import StepBuffers
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.errors import UserError
from opt_trt.graph.programs import stage_programs
from opt_trt.ops import Collectives, ReferenceOps
from opt_trt.plugins.cuda.gpu import visible_gpu
from opt_trt.plugins.cuda.graphs import SharedCaptures, put
from opt_trt.runtime.scheduling.block_pool import blocks_for
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


class ReplayingDecoder(CompiledDecoder):
    """What decoders of a GPU have in common: programs by phase and bucket, and captured steps.

    The KV cache must lie on the GPU, and be the same one from step to step.
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
        self._graphs: dict[tuple[int, bool, bool], Replayable] = {}  # by sequences; is it greedy, does it draw
        self._captured_cache: ReferenceType[torch.Tensor] | None = None  # its first layer

    def _buffers_of(self, rows: int) -> StepBuffers:
        if rows not in self._buffers:
            self._buffers[rows] = StepBuffers(rows, self._width, self._device)
        return self._buffers[rows]

    def _replayed(self, rows: int, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        """What `RankLogits.join` gives of the step in the buffers, and of the rows that fill it up."""
        if self._captured_cache is None or self._captured_cache() is not kv_cache[0]:
            self._graphs.clear()
            self._captured_cache = ref(kv_cache[0])  # the session may free it
        draws = inputs.draws is not None
        key = (rows, inputs.greedy, draws)
        if key not in self._graphs:
            there = self._buffers[rows].inputs
            fixed = replace(there, greedy=inputs.greedy, draws=there.draws if draws else None)
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


class CudaDecoder(ReplayingDecoder):
    """`Decoder` of one GPU.

    Steps that choose bring a logit and a token a sequence back, others whole logits. While the session looks at the
    tokens of such a step, the GPU computes the next one, see `Ahead`.
    """

    def __init__(self, config: EngineConfig, parts: Parts, context: str, captured: Capture, put: Put) -> None:
        """See `ReplayingDecoder`; `put` gives the GPU work."""
        super().__init__(config, parts, context, captured)
        self.spec = replace(self.spec, draws=True, begins_early=True)
        self._put = put
        self._ahead = Ahead(self.spec)

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`."""
        joined, hidden = self._ahead.step(inputs, kv_cache, self._launch)
        return self._logits.outputs(joined, inputs, hidden)

    def _launch(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor], before: Launch | None = None) -> Launch:
        """Give the GPU a step; its ids are rows of what the step before has chosen, if that is given."""
        rows = replayed_rows(inputs)
        if rows is None:
            assert before is None, "only captured steps take their tokens from the step before"
            return Launch(lambda: self._one_by_one(moved(inputs, self._device), kv_cache), inputs, self._put)
        buffers = self._buffers_of(rows)
        packed = buffers.packed(inputs)

        def replay() -> tuple[torch.Tensor, None]:
            buffers.load(packed, None if before is None else before.chosen)
            return self._replayed(rows, inputs, kv_cache), None

        return Launch(replay, inputs, self._put)

    def _one_by_one(
        self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `RankLogits.join` gives of a step that is not captured, and hidden states."""
        x = self._loop(self._embed(inputs), inputs, kv_cache)
        return self._joined(x, inputs), self._hidden(x, inputs)


def moved(inputs: StepInputs, device: torch.device) -> StepInputs:
    """The same step in the memory of a device; nobody waits for what a GPU has to do before."""
    values: dict[str, Any] = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    there = {
        name: tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
        for name, tensor in tensors.items()
    }
    return StepInputs(**(values | there))


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


def open_cuda_decoder(engine_dir: Path, config: EngineConfig, options: RuntimeOptions) -> CudaDecoder:
    """Open an engine on the current GPU after checking that it was built for such a one; weights are copied there."""
    check_gpu(engine_dir, config, visible_gpu())
    return CudaDecoder(config, gpu_parts(engine_dir, config, 0), context_phase(config, options), SharedCaptures(), put)
