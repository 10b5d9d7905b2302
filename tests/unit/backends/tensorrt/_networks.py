"""Small random models, their checkpoints, and networks of these under the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from opt_trt.backends.tensorrt.bindings import (
    GENERATION,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    PROMPT,
    WANTED,
    WRITE_INDICES,
    EngineShape,
    Run,
    Tensors,
    cache_names,
)
from opt_trt.backends.tensorrt.inputs import input_table, profile_ranges
from opt_trt.backends.tensorrt.library import create_network, load_library, missing
from opt_trt.backends.tensorrt.network import add_decoder
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.model.config import ModelConfig
from opt_trt.quant import MODES
from opt_trt.quant.mode import QuantMode
from tests.unit.backends.tensorrt._interpreter import AllReduce, Interpreter

needs_library = pytest.mark.skipif(missing() is not None, reason=str(missing()))
SIZES: dict[str, Any] = {
    "vocab_size": 61, "num_hidden_layers": 2, "ffn_dim": 48, "num_attention_heads": 2, "hidden_size": 32,
    "word_embed_proj_dim": 32, "max_position_embeddings": 64, "dropout": 0.0, "activation_function": "relu",
}  # fmt: skip
POST_NORM = {"do_layer_norm_before": False}
PROJECTED = POST_NORM | {"word_embed_proj_dim": 16}
PAD = 1
SHAPE = EngineShape(slots=4, capacity=48, most_tokens=32, usual_tokens=8)


def save_model(
    directory: Path, std: float = 0.25, weights: Mapping[str, torch.Tensor] | None = None, **sizes: Any
) -> Path:
    """Write a random OPT with some given weights; `std` is large enough for attention to differ from a mean."""
    torch.manual_seed(3)
    model = OPTForCausalLM(OPTConfig(**(SIZES | sizes)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    model.load_state_dict(weights or {}, strict=False)
    model.save_pretrained(directory)
    return directory


def make_checkpoint(model_dir: Path, directory: Path, dtype: str, mode: str | None = None, **flags: Any) -> Checkpoint:
    """Convert a model; weights are quantized by the mode, but not packed unless flags say so."""
    if mode is not None:
        flags = {"use_weight_only": True, "weight_only_precision": mode, "defer_quantization": True} | flags
    convert(
        ConvertConfig(model_dir=str(model_dir), output_dir=str(directory), dtype=dtype, log_level="warning", **flags)
    )
    return Checkpoint(directory)


def make_network(checkpoint: Checkpoint, shape: EngineShape = SHAPE, **options: Any) -> tuple[Any, Any]:
    """Return a network of a checkpoint, and the constants that must live as long."""
    library = load_library()
    network = create_network(library, library.Builder(library.Logger(library.Logger.ERROR)))
    return network, add_decoder(library, network, checkpoint, shape, **options)


def interpreted(
    checkpoint: Checkpoint,
    shape: EngineShape = SHAPE,
    edit: Callable[[Any], None] = lambda network: None,
    all_reduce: AllReduce | None = None,
    **options: Any,
) -> Interpreter:
    """Return the `Run` of a checkpoint's network after an edit."""
    network, constants = make_network(checkpoint, shape, **options)
    edit(network)
    table = input_table(checkpoint.config, shape)
    return Interpreter(load_library(), network, constants.kept, table, profile_ranges(shape), all_reduce)


def reference_model(
    model_dir: Path, dtype: str, mode: str | None = None, head_mode: str | None = None
) -> OPTForCausalLM:
    """Return transformers' model in fp32 with rounded weights; linears of layers and the head may be quantized."""
    model, kind = OPTForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval(), getattr(torch, dtype)
    for name, parameter in model.named_parameters():
        value = parameter.data.to(kind)
        if mode is not None and ".layers." in name and value.ndim == 2:
            value = MODES[mode].dequantize(*MODES[mode].quantize(value)).to(kind)
        parameter.data = value.float()
    if head_mode is not None:
        _quantize_head(model, MODES[head_mode], kind)
    return model


@torch.no_grad()
def _quantize_head(model: OPTForCausalLM, mode: QuantMode, dtype: torch.dtype) -> None:
    """Quantize the matrix between hidden states and logits: a projection is part of it, as in every checkpoint."""
    decoder, head = model.model.decoder, model.lm_head.weight
    if decoder.project_out is not None:
        head, decoder.project_out = (head @ decoder.project_out.weight).to(dtype).float(), None
    model.lm_head.weight = torch.nn.Parameter(mode.dequantize(*mode.quantize(head)))


@torch.inference_mode()
def reference_logits(model: OPTForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """Return the logits [tokens, V] of a sequence."""
    logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


class Steps:
    """Steps of a network over caches of all slots, as a decoder takes them."""

    def __init__(self, run: Run, config: ModelConfig, shape: EngineShape = SHAPE) -> None:
        """Begin with caches of NaN: no step may depend on memory that its sequence has not written."""
        self._run, self._shape = run, shape
        size = (shape.slots, config.num_attention_heads, shape.capacity, config.head_size)
        names = cache_names(config.num_hidden_layers)
        self.caches = {name: torch.full(size, torch.nan, dtype=getattr(torch, config.dtype)) for name in names}

    def prompt(self, slot: int, ids: Sequence[int], start: int, wanted: Sequence[int]) -> Tensors:
        """Compute a chunk of a prompt, whose first token has the position `start`; a new sequence clears its slot."""
        caches = {name: cache[slot : slot + 1] for name, cache in self.caches.items()}
        if start == 0:
            for cache in caches.values():
                cache.zero_()
        return self._step(PROMPT, [ids], [range(start, start + len(ids))], [start], wanted, caches)

    def generation(self, tokens: Mapping[int, tuple[int, int]]) -> Tensors:
        """Compute one token of each of some slots: its id and its position by slot. Rows of other slots are idle."""
        rows = [tokens.get(slot, (PAD, 0)) for slot in range(max(tokens) + 1)]
        writes = [rows[slot][1] if slot in tokens else self._shape.capacity - 1 for slot in range(len(rows))]
        caches = {name: cache[: len(rows)] for name, cache in self.caches.items()}
        ids, positions = [[token] for token, _ in rows], [[position] for _, position in rows]
        return self._step(GENERATION, ids, positions, writes, sorted(tokens), caches)

    def _step(self, profile: int, ids: Any, positions: Any, writes: Any, wanted: Any, caches: Tensors) -> Tensors:
        values = (ids, [list(row) for row in positions], list(writes), list(wanted))
        names = (INPUT_IDS, POSITION_IDS, WRITE_INDICES, WANTED)
        feeds = {name: torch.tensor(value, dtype=torch.int32) for name, value in zip(names, values, strict=True)}
        return self._run(profile, feeds, caches)


def worst_error(run: Run, config: ModelConfig, model: OPTForCausalLM, shape: EngineShape = SHAPE) -> float:
    """Return the largest difference of logits to transformers'; NaN counts as infinite.

    Steps are a prompt in two chunks, another prompt, then generation of both, in slots 3 and 1 of 4.
    """
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randint(config.vocab_size, (n,), generator=generator).tolist() for n in (30, 18))
    expected = [reference_logits(model, ids) for ids in (first, second)]
    steps, found = Steps(run, config, shape), []
    found += [(steps.prompt(3, first[:14], 0, range(14)), expected[0][:14])]
    found += [(steps.prompt(3, first[14:23], 14, [8]), expected[0][22:23])]
    found += [(steps.prompt(1, second[:11], 0, [10]), expected[1][10:11])]
    for step in range(7):
        tokens = {1: (second[11 + step], 11 + step), 3: (first[23 + step], 23 + step)}
        found += [(steps.generation(tokens), torch.stack((expected[1][11 + step], expected[0][23 + step])))]
    errors = torch.cat([(outputs[LOGITS].float() - logits).abs().flatten() for outputs, logits in found])
    return float(errors.nan_to_num(torch.inf).max())
