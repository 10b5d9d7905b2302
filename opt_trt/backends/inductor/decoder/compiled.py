"""The decoder of an embedded engine: three compiled programs, looped over memory-mapped weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from opt_trt.backends.engine import REBUILD, EngineConfig, check_device, check_rank, read_engine_config
from opt_trt.backends.inductor.decoder.loading import Parts, Runnable, load_parts
from opt_trt.backends.inductor.decoder.pipeline import Found, joined_and_hidden, micro_batches
from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.errors import UserError
from opt_trt.graph.decoder import Head
from opt_trt.graph.embedding import embedding_constants
from opt_trt.graph.programs import stage_programs
from opt_trt.ops import ALONE, Collectives, ReferenceOps
from opt_trt.plugins.collectives.links import StageLink
from opt_trt.plugins.collectives.native_group import NativeCollectives
from opt_trt.plugins.cpu.isa import processor_flags
from opt_trt.plugins.native.library import NativeLibrary
from opt_trt.step import DecoderSpec, StepInputs, StepOutputs

TIMEOUT_S = 3600.0  # longer than the longest step: a rank that waits longer for another has lost it


class CompiledDecoder:
    """`Decoder` of one rank. Holds programs and weights; the KV cache is the caller's."""

    def __init__(self, config: EngineConfig, parts: Parts, rank: int = 0, ops: Collectives | None = None) -> None:
        model = config.pretrained_config
        self.spec = decoder_spec(config, rank)
        self._stages = model.mapping.pp_size
        self._hidden_size = model.hidden_size
        self._programs = parts.programs
        self._tables, self._layers, self._head_weights = parts.tables, parts.layers, parts.head
        self._constants = embedding_constants(model, model.mapping.tp_rank(rank))
        self._plain_head = Head(model, ReferenceOps())
        self._logits = RankLogits(model.mapping, rank, model.vocab_size, ops or ALONE)

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`."""
        x = self._loop(self._embed(inputs), inputs, kv_cache)
        return self._logits.outputs(self._joined(x, inputs), inputs, self._hidden(x, inputs))

    def timed_step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> tuple[int, int, int]:
        """Run a step for its times: ns on the monotonic clock when it began, after the embedding, and at its end."""
        begin = time.perf_counter_ns()
        x = self._embed(inputs)
        embedded = time.perf_counter_ns()
        self._joined(self._loop(x, inputs, kv_cache), inputs)
        return begin, embedded, time.perf_counter_ns()

    def _embed(self, inputs: StepInputs) -> torch.Tensor:
        return self._programs["embedding"].run([inputs.input_ids, inputs.position_ids, *self._tables, *self._constants])

    def _loop(self, x: torch.Tensor, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        """All layers of the rank. A layer's cache is a tensor of its own: sliced inside a program, it would be lost."""
        step = (inputs.slot_mapping, inputs.query_start, inputs.kv_lens, inputs.block_tables)
        layer = self._program("layer", inputs)
        for weights, cache in zip(self._layers, kv_cache, strict=True):
            x = layer.run([x, *weights, cache, *step])
            self._after_layer()
        return x

    def _program(self, kind: str, inputs: StepInputs) -> Runnable:
        """The program of a kind that this step takes; here, the only one."""
        return self._programs[kind]

    def _after_layer(self) -> None:
        """What other ranks may wait for meanwhile; here, nothing."""

    def _joined(self, x: torch.Tensor, inputs: StepInputs) -> torch.Tensor:
        """See `RankLogits.join`; no rows where no logits are wanted, as of a part of a step that ends no prompt."""
        if not inputs.last_token_ids.numel():  # not len(), which is Python's: 15 µs behind a step's weights
            return torch.empty(0, self._logits.width(inputs), device=x.device)
        part = self._program("head", inputs).run([x, inputs.last_token_ids, *self._head_weights]).float()
        return self._logits.join(part, inputs)

    def _hidden(self, x: torch.Tensor, inputs: StepInputs) -> torch.Tensor | None:
        wanted = inputs.hidden_token_ids  # few tokens: their norm needs no program of its own
        return None if wanted is None else self._plain_head.normed(x.float(), wanted, self._head_weights)


class StageDecoder(CompiledDecoder):
    """`Decoder` of a rank of a pipeline stage: what comes in and goes out are hidden states."""

    def __init__(self, config: EngineConfig, parts: Parts, rank: int, ops: Collectives, pipeline: StageLink) -> None:
        super().__init__(config, parts, rank, ops)
        self._pipeline = pipeline

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`; the outputs are rank 0's, other ranks return some of them or no rows."""
        pipeline, found = self._pipeline, list[Found]()
        parts = micro_batches(inputs, self._stages)
        arriving = [] if pipeline.is_first else [pipeline.expect(len(p.input_ids), self._hidden_size) for p in parts]
        for index, part in enumerate(parts):
            x = self._embed(part) if pipeline.is_first else pipeline.receive(arriving[index])
            x = self._loop(x, part, kv_cache)
            if pipeline.is_last:
                found.append((self._joined(x, part), self._hidden(x, part)))
            else:
                pipeline.send(x)
        sizes = (self._logits.width(inputs), self._hidden_size)
        joined, hidden = joined_and_hidden(pipeline, found, inputs, sizes)
        return self._logits.outputs(joined, inputs, hidden)

    def _after_layer(self) -> None:
        self._pipeline.progress()


def decoder_spec(config: EngineConfig, rank: int = 0) -> DecoderSpec:
    """What a session must know of an engine; layers and heads are those of the rank."""
    model, limits = config.pretrained_config, config.build_config
    return DecoderSpec(
        num_layers=len(model.stage_layers(model.mapping.pp_rank(rank))),
        num_heads=model.local_heads,
        head_size=model.head_size,
        vocab_size=model.vocab_size,
        kv_dtype=getattr(torch, model.dtype),
        tokens_per_block=limits.tokens_per_block,
        max_batch_size=limits.max_batch_size,
        max_input_len=limits.max_input_len,
        max_seq_len=limits.max_seq_len,
        max_num_tokens=limits.max_num_tokens,
        gather_context_logits=limits.gather_context_logits,
        gather_generation_logits=limits.gather_generation_logits,
        end_id=model.eos_token_id,
        pad_id=model.pad_token_id,
    )


def open_decoder(engine_dir: Path, rank: int = 0, timeout_s: float = TIMEOUT_S) -> CompiledDecoder:
    """Open a rank of an engine after checking that it was built for this machine; its plugin library is loaded first.

    Of an engine of several ranks, every rank must call this, each in a process of one MPI world. `timeout_s` is how
    long a rank waits for another within a step.
    """
    config = read_engine_config(engine_dir)
    mapping = config.pretrained_config.mapping
    check_device(engine_dir, config, processor_flags())
    check_rank(engine_dir, config, rank)
    library_file = engine_dir / config.plugin_library
    if not library_file.is_file():
        raise UserError(f"expected {library_file}, found nothing there; {REBUILD.format(engine=engine_dir)}")
    library = NativeLibrary(library_file.stem, library_file)
    library.operators()
    names = stage_programs(mapping, mapping.pp_rank(rank))
    parts = load_parts(engine_dir, config, rank, names, place=lambda weight: weight)
    if mapping.world_size == 1:
        return CompiledDecoder(config, parts)

    from opt_trt.plugins.collectives import cpu as rendezvous  # MPI starts with this import

    pipeline = rendezvous.connect(library.operators(), mapping, timeout_s)
    ops = ALONE if mapping.tp_size == 1 else NativeCollectives(library.operators(), mapping.tp_size)
    if mapping.pp_size == 1:
        return CompiledDecoder(config, parts, rank, ops)
    return StageDecoder(config, parts, rank, ops, pipeline)
