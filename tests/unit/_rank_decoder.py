"""All ranks of a checkpoint in one process, uncompiled: tensor-parallel ranks are threads, stages take turns."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import torch

from opt_trt.backends.inductor.builder.layout import packed_tensors
from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.graph.decoder import Head, Layer, head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS, embedding_constants, embedding_module
from opt_trt.model.config import ModelConfig
from opt_trt.ops import Ops, ReferenceCollectives, ReferenceOps
from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import Choice
from opt_trt.plugins.tune.common import gemm_problems
from opt_trt.step import DecoderSpec, StepInputs, StepOutputs
from tests.unit._decoders import spec

PATIENCE_S = 60  # a rank that waits longer has lost the others


class Threads:
    """The exchange of the threads of one tensor-parallel group, and the number of exchanges."""

    def __init__(self, size: int) -> None:
        self._barrier = Barrier(size)
        self._parts: list[torch.Tensor] = [torch.empty(0)] * size
        self.exchanged = [0] * size
        self.newest = torch.empty(0)  # the newest tensor that was exchanged

    def ops(self, tp_rank: int) -> ReferenceOps:
        """Return the plain operations of a rank."""

        def exchange(x: torch.Tensor) -> Sequence[torch.Tensor]:
            self.exchanged[tp_rank] += 1
            self.newest = x
            self._parts[tp_rank] = x
            self._barrier.wait(PATIENCE_S)
            parts = list(self._parts)
            self._barrier.wait(PATIENCE_S)  # before the next parts come
            return parts

        return ReferenceOps(ReferenceCollectives(exchange))


def library_plan(config: ModelConfig, lm_head_precision: str | None = None) -> TacticPlan:
    """Return the plan by which a library-only engine stores its weights."""
    problems = gemm_problems(config, lm_head_precision)
    row_major = Choice(gemm.ROW_MAJOR, ())
    return TacticPlan(problems, dict.fromkeys(problems, row_major), Choice(attention.LIBRARY_LAYOUT, ()))


class Rank:
    """One rank: its weights as an engine of a plan stores them, and the programs it runs."""

    def __init__(self, directory: Path, rank: int, ops: Ops, plan: TacticPlan) -> None:
        self.checkpoint = Checkpoint(directory, rank)
        config = self.config = self.checkpoint.config
        mapping = config.mapping
        self.tp_rank, self.stage = mapping.tp_rank(rank), mapping.pp_rank(rank)
        self.weights = dict(packed_tensors(self.checkpoint, plan))
        self.layers = config.stage_layers(self.stage)
        self._embedding, self._layer = embedding_module(config, ops), Layer(config, ops)
        self._head = Head(config, ops)
        self.logits = RankLogits(mapping, rank, config.vocab_size, ops)
        self._head_names = head_weight_names(config, plan.problems["head"].quantized)

    @torch.inference_mode()
    def run(self, x: torch.Tensor | None, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute hidden states from those of the stage before; in the last stage, join logits."""
        step = (inputs.slot_mapping, inputs.query_start, inputs.kv_lens, inputs.block_tables)
        if x is None:
            tables = [self.weights[name] for name in EMBEDDING_WEIGHTS]
            constants = embedding_constants(self.config, self.tp_rank)
            x = self._embedding(inputs.input_ids, inputs.position_ids, *tables, *constants)
        heads = self.config.local_heads
        mine = slice(self.tp_rank * heads, (self.tp_rank + 1) * heads)
        for local, layer in enumerate(self.layers):
            weights = [self.weights[name] for name in layer_weight_names(self.config, local)]
            x = self._layer(x, weights, kv_cache[layer][:, :, mine], step)
        if self.stage < self.config.mapping.pp_size - 1:
            return x
        head = [self.weights[name] for name in self._head_names]
        return self.logits.join(self._head(x, inputs.last_token_ids, head), inputs)


def spec_of(config: ModelConfig, **limits: int) -> DecoderSpec:
    """Return the specification of a model's decoder, which returns all logits."""
    return spec(
        num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads, head_size=config.head_size,
        vocab_size=config.vocab_size, kv_dtype=getattr(torch, config.dtype), gather_context_logits=True,
        gather_generation_logits=True, **limits,
    )  # fmt: skip


class RankDecoder:
    """`Decoder` of a checkpoint of any number of ranks; a rank's KV cache is its heads and layers of the whole one."""

    def __init__(self, directory: Path, lm_head_precision: str | None = None) -> None:
        config = self.config = Checkpoint(directory).config
        mapping, plan = config.mapping, library_plan(config, lm_head_precision)
        self.groups = [Threads(mapping.tp_size) for _ in range(mapping.pp_size)]
        self.ranks = [
            Rank(directory, rank, self.groups[mapping.pp_rank(rank)].ops(mapping.tp_rank(rank)), plan)
            for rank in range(mapping.world_size)
        ]
        self.spec = spec_of(config, max_batch_size=8, max_input_len=60, max_seq_len=64, max_num_tokens=64)

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """Compute stage after stage; the ranks of a stage must agree in every bit."""
        x, tp_size = None, self.config.mapping.tp_size
        for first in range(0, len(self.ranks), tp_size):
            stage, received = self.ranks[first : first + tp_size], x
            with ThreadPoolExecutor(tp_size) as pool:
                results = list(pool.map(lambda rank: rank.run(received, inputs, kv_cache), stage))  # noqa: B023
            assert all(torch.equal(result, results[0]) for result in results), "ranks disagree"
            x = results[0]
        assert x is not None
        return self.ranks[0].logits.outputs(x, inputs, None)
