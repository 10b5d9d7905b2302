"""Read the arguments of `generate_ids` as transformers' `generate` takes them, lists and numpy's arrays included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from opt_trt.api.tensors import TensorOptions, tensor_options
from opt_trt.config.field_types import checked, native, shown
from opt_trt.config.other_names import understood
from opt_trt.config.tensor_names import TENSOR_NAMES
from opt_trt.errors import UserError
from opt_trt.step import DecoderSpec

NEW_TOKENS = 20  # transformers' default
LENGTHS = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}  # prompt included, and new tokens alone
TENSORS = ("input_ids", "attention_mask")
IGNORED = ("transformers_version", "name_or_path")  # in a generation_config
CHOOSABLE = ("eos_token_id",)  # options for which None is a value of its own


@runtime_checkable
class Streamer(Protocol):
    """A receiver of tokens, such as transformers' `TextStreamer`."""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, int64 `[1, tokens]`, then each new token, int64 `[1]`."""
        ...

    def end(self) -> None:
        """Take note that no more tokens will come."""
        ...


class GeneratedIds(NamedTuple):
    """The result of `generate_ids` with `return_dict_in_generate=True`."""

    sequences: torch.Tensor


@dataclass(frozen=True)
class TensorCall:
    """The checked arguments of a call."""

    input_ids: torch.Tensor  # integers [rows, tokens]
    attention_mask: torch.Tensor | None  # 0 or 1, of the same shape
    options: TensorOptions
    streamer: Streamer | None = None


def read_tensor_call(
    input_ids: Any, attention_mask: Any, generation_config: Any, streamer: Any, given: Mapping[str, Any],
    spec: DecoderSpec,
) -> TensorCall:  # fmt: skip
    """Return the arguments of a call; `UserError` names what is wrong, unknown or idle."""
    if hasattr(attention_mask, "to_diff_dict"):  # transformers has its generation_config in this place
        attention_mask, generation_config = None, attention_mask
    placed = {"input_ids": input_ids, "attention_mask": attention_mask}
    named = _known(dict(given) | {name: value for name, value in placed.items() if value is not None})
    tensors = {name: as_tensor(name, named.pop(name)) for name in TENSORS if named.get(name) is not None}
    if "input_ids" not in tensors:
        raise UserError("generate_ids needs input_ids: integers of shape [rows, tokens]")
    ids, mask = tensors["input_ids"], tensors.get("attention_mask")
    _check_mask(mask)
    options = tensor_options(_lengths(_configured(generation_config, named), ids, spec), spec)
    _check_streamer(streamer, ids, options)
    return TensorCall(ids, mask, options, streamer)


def as_tensor(name: str, given: Any) -> torch.Tensor:
    """Return numbers that are given as a tensor, an array or lists as a tensor."""
    try:
        rows = [native(row) for row in given] if isinstance(given, list | tuple) else given
        tensor = rows if isinstance(rows, torch.Tensor) else torch.as_tensor(rows)
    except (ValueError, TypeError, RuntimeError) as error:
        shape = "rows of one length, padded on the left" if isinstance(given, list | tuple) else "a tensor or lists"
        raise UserError(f"{name} must be {shape}, found {shown(given)} ({str(error).splitlines()[0]})") from error
    if (
        tensor.is_meta
        or tensor.is_complex()
        or (name == "input_ids" and (tensor.is_floating_point() or tensor.dtype == torch.bool))
    ):
        raise UserError(f"{name} must be integers of shape [rows, tokens], found {tensor.dtype} of {[*tensor.shape]}")
    return tensor


def _check_mask(mask: torch.Tensor | None) -> None:
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise UserError("attention_mask must be 1 for tokens and 0 for padding, found other numbers")


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    own = (*(f.name for f in fields(TensorOptions)), *LENGTHS, *TENSORS)
    options = understood(given, own, TENSOR_NAMES, "generate_ids")
    return {name: value for name, value in options.items() if value is not None or name in CHOOSABLE}


def _configured(config: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a `GenerationConfig` or a dictionary, and those given by name, which come first."""
    if config is None:
        return dict(named)
    found = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config
    if not isinstance(found, Mapping):
        raise UserError(f"generation_config must be a GenerationConfig or a dictionary, found {shown(config)}")
    wanted = {k: v for k, v in found.items() if v is not None and not str(k).startswith("_") and k not in IGNORED}
    options = _known(wanted)
    for whole, new in LENGTHS.items():
        if whole in named or new in named:
            options = {name: value for name, value in options.items() if name not in (whole, new)}
    return options | dict(named)


def _lengths(given: Mapping[str, Any], ids: torch.Tensor, spec: DecoderSpec) -> dict[str, Any]:
    """Return options whose lengths count new tokens only; those that count the prompt are the second choice."""
    options = {name: value for name, value in given.items() if name not in LENGTHS}
    width = ids.shape[1] if ids.ndim == 2 else 0
    for whole, new in LENGTHS.items():
        if whole in given and new not in given:
            options[new] = max(0, checked(whole, int, given[whole]) - width)
    if "max_new_tokens" not in given and options.get("max_new_tokens") == 0:
        raise UserError(f"max_length={given['max_length']} leaves no new token behind {width} of the prompt; raise it")
    room = spec.max_seq_len - width
    return {"max_new_tokens": min(NEW_TOKENS, room) if room > 0 else NEW_TOKENS} | options


def _check_streamer(streamer: Any, ids: torch.Tensor, options: TensorOptions) -> None:
    if streamer is None:
        return
    if not isinstance(streamer, Streamer):
        raise UserError(f"streamer must have put and end, as transformers' have, found {shown(streamer)}")
    if len(ids) * options.num_return_sequences != 1 or options.num_beams != 1:
        raise UserError(
            f"streamer takes one output, found {len(ids)} rows, num_return_sequences={options.num_return_sequences}, "
            f"num_beams={options.num_beams}"
        )
