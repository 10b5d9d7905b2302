"""The reason why tensors are not those of the OPT in their configuration, as far as their names and shapes tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opt_trt.sources.opt import EMBEDDING, HEAD, OFFSET_ROWS, POSITIONS
from opt_trt.sources.stored import TensorInfo

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module", "_checkpoint_wrapped_module")
LORA = (".lora_A.", ".lora_B.", ".base_layer.", ".lora_embedding_")
QUANTIZED = (".qweight", ".qzeros", ".g_idx", ".SCB", ".absmax", ".quant_map", ".quant_state", ".weight_packed")
PLACEHOLDERS = ((0,), (1,))  # what ZeRO-3 leaves in the place of a tensor
FETCH = "fetch them again"


@dataclass(frozen=True)
class Differences:
    """The differences from a model: missing names, unexpected keys, and tensors of another shape by name."""

    missing: list[str]
    extra: list[str]
    wrong: Mapping[str, TensorInfo]


def unwrapped(key: str) -> str:
    """Return the name of a tensor without the modules that trainers wrap around a model."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def advice(found: Differences) -> str:
    """Return what to do about the differences."""
    return next(text for check in CHECKS if (text := check(found)))


def _unmerged(found: Differences) -> str:
    unmerged = any(part in key for key in found.extra for part in LORA)
    return "a LoRA adapter is in them: merge it first (peft's merge_and_unload)" if unmerged else ""


def _quantized(found: Differences) -> str:
    quantized = any(part in key for key in found.extra for part in QUANTIZED)
    return "they are quantized already: give the plain model" if quantized else ""


def _gathered(found: Differences) -> str:
    if not any(tensor.shape in PLACEHOLDERS for tensor in found.wrong.values()):
        return ""
    return "they are placeholders of DeepSpeed's ZeRO-3: run zero_to_fp32.py, or gather the weights when saving"


def _sizes(found: Differences) -> str:
    if found.missing or found.extra or not found.wrong.keys() <= {EMBEDDING, HEAD, POSITIONS}:
        return ""
    rows = {name: tensor.shape[0] for name, tensor in found.wrong.items() if len(tensor.shape) == 2}
    sizes = {"vocab_size": rows.get(EMBEDDING, rows.get(HEAD)), "max_position_embeddings": rows.get(POSITIONS)}
    if sizes["max_position_embeddings"]:
        sizes["max_position_embeddings"] -= OFFSET_ROWS
    fitting = " and ".join(f"{key} to {size}" for key, size in sizes.items() if size and size > 0)
    return f"set {fitting} in config.json if these are the right tensors, else {FETCH}" if fitting else ""


def _head(found: Differences) -> str:
    if found.missing != [HEAD] or found.extra or found.wrong:
        return ""
    return "fetch it again, or set tie_word_embeddings to true in config.json if the head is the embedding"


def _prefixed(found: Differences) -> str:
    prefix = next((key.removesuffix(EMBEDDING) for key in found.extra if key.endswith(EMBEDDING)), "")
    return f"take {prefix!r} off the names" if prefix and all(key.startswith(prefix) for key in found.extra) else ""


def _fetch(found: Differences) -> str:
    return FETCH


CHECKS: tuple[Callable[[Differences], str], ...] = (_unmerged, _quantized, _gathered, _sizes, _head, _prefixed, _fetch)
