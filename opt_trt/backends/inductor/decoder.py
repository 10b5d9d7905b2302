"""The decoder of an embedded engine: three compiled programs, looped over memory-mapped weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from opt_trt.backends.engine import (
    PROGRAMS,
    REBUILD,
    EngineConfig,
    check_device,
    map_weights,
    read_engine_config,
)
from opt_trt.backends.inductor.isa import processor_flags
from opt_trt.backends.inductor.program import load_programs
from opt_trt.errors import UserError
from opt_trt.graph.decoder import head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS
from opt_trt.plugins.native import NativeLibrary
from opt_trt.step import DecoderSpec, StepInputs


class CompiledDecoder:
    """`Decoder` of one rank. Holds programs and weights; the KV cache is the caller's."""

    def __init__(self, engine_dir: Path, config: EngineConfig, rank: int = 0) -> None:
        weights = map_weights(engine_dir, rank)
        model = config.pretrained_config
        package = engine_dir / PROGRAMS.format(rank=rank)
        try:
            self._embedding, self._layer, self._head = load_programs(package, ("embedding", "layer", "head"))
            self._tables = [weights[name] for name in EMBEDDING_WEIGHTS]
            self._layers = [
                [weights[name] for name in layer_weight_names(model, layer)] for layer in range(model.num_hidden_layers)
            ]
            self._head_weights = [weights[name] for name in head_weight_names(model)]
        except (FileNotFoundError, KeyError) as error:
            raise UserError(f"{engine_dir} lacks {error}; {REBUILD.format(engine=engine_dir)}") from error
        self.spec = decoder_spec(config)

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        """See `Decoder.step`. A layer's cache is sliced out here: inside a program the slice would be lost."""
        x = self._embedding.run([inputs.input_ids, inputs.position_ids, *self._tables])
        step = (inputs.slot_mapping, inputs.query_start, inputs.kv_lens, inputs.block_tables)
        for weights, cache in zip(self._layers, kv_cache, strict=True):
            x = self._layer.run([x, *weights, cache, *step])
        return self._head.run([x, inputs.last_token_ids, *self._head_weights]).float()


def decoder_spec(config: EngineConfig) -> DecoderSpec:
    """What a session must know of an engine."""
    model, limits = config.pretrained_config, config.build_config
    return DecoderSpec(
        num_layers=model.num_hidden_layers,
        num_heads=model.num_attention_heads,
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


def open_decoder(engine_dir: Path) -> CompiledDecoder:
    """Open an engine after checking that it was built for this machine; its plugin library is loaded first."""
    config = read_engine_config(engine_dir)
    check_device(engine_dir, config, processor_flags())
    library = engine_dir / config.plugin_library
    if not library.is_file():
        raise UserError(f"expected {library}, found nothing there; {REBUILD.format(engine=engine_dir)}")
    NativeLibrary(library.stem, library).operators()
    return CompiledDecoder(engine_dir, config)
