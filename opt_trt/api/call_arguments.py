"""Read the arguments of `generate` and `generate_async`: prompts of any kind, and parameters in any form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeGuard

from opt_trt.api.sampling_params import SamplingParams
from opt_trt.config.field_types import WrongType, converted, native, shown
from opt_trt.config.llm_names import LORA
from opt_trt.config.other_names import ANY, OtherName, called, happens, refused, understood
from opt_trt.errors import UserError


class TextPrompt(TypedDict, total=False):
    """A prompt as a dictionary, as vLLM and TensorRT-LLM have it."""

    prompt: str
    prompt_token_ids: Sequence[int]


Prompt = str | Sequence[int] | TextPrompt | Mapping[str, Any]
Params = SamplingParams | Mapping[str, Any]
SURELY = 2**31  # ids below need no closer look
KINDS = "text, token ids, a dictionary with one of the two, or a list of these"
TURNS = "callers take turns; call generate for what is urgent first"

CALL_NAMES: dict[str, OtherName] = {
    "inputs": called("prompts"),
    "prompt": called("prompts"),
    "prompt_token_ids": called("prompts"),
    "params": called("sampling_params"),
    "use_tqdm": happens(ANY),  # where no bar is shown
    "lora_request": refused(LORA),
    "prompt_adapter_request": refused(LORA),
    "priority": happens(0, way=TURNS),
    "scheduling_params": refused(TURNS),
    "tokenization_kwargs": refused("give truncate_prompt_tokens, or token ids"),
    "guided_options_request": refused("outputs are not constrained by a grammar"),
    "kv_cache_retention_config": refused("give LLM(kv_cache_enable_block_reuse=True)"),
    "disaggregated_params": refused("prompts and outputs are computed by one engine"),
    "trace_headers": happens(ANY),
    "cache_salt": refused("blocks of the KV cache are found by their tokens alone"),
}
CALL_OPTIONS = ("prompts", "sampling_params", "request_id")
PROMPT_NAMES: dict[str, OtherName] = {
    "multi_modal_data": refused("OPT reads text only"),
    "mm_processor_kwargs": happens(ANY),
    "multi_modal_uuids": happens(ANY),
    "cache_salt": CALL_NAMES["cache_salt"],
    "input_ids": called("prompt_token_ids"),
    "attention_mask": happens(ANY),  # of one prompt, which has no padding
    "token_type_ids": happens(ANY),
    "type": happens(ANY),
}


def read_call(face: str, prompts: Any, params: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the prompts and parameters that a call gives, by place or by any name; single parameters make one."""
    own = {name: value for name, value in options.items() if name in CALL_NAMES or name in CALL_OPTIONS}
    placed = {"prompts": prompts, "sampling_params": params}
    own |= {name: value for name, value in placed.items() if value is not None}
    call = understood(own, CALL_OPTIONS, CALL_NAMES, face)
    if call.get("prompts") is None:
        raise UserError(f"{face} needs prompts: {KINDS}")
    single = {name: value for name, value in options.items() if name not in own}
    given = call.get("sampling_params")
    if single and given is not None:
        raise UserError(f"{face} was given SamplingParams and {next(iter(single))} beside them; put it into them")
    return call["prompts"], SamplingParams(**single) if single else given


def as_params(given: object) -> SamplingParams:
    """Return parameters that may be a dictionary, or None for the defaults."""
    if given is None:
        return SamplingParams()
    if isinstance(given, Mapping):
        return SamplingParams(**understood(given, given, {}, "SamplingParams"))
    if not isinstance(given, SamplingParams):
        raise UserError(f"expected SamplingParams or a dictionary of options, found {shown(given)}")
    return given


def as_list(prompts: Any) -> Sequence[Any]:
    """Return one prompt, or several, as a sequence of prompts; arrays are lists of their numbers or rows."""
    prompts = native(prompts)
    if isinstance(prompts, str | Mapping) or (isinstance(prompts, list | tuple) and prompts and is_ids(prompts)):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise UserError(f"expected prompts as {KINDS}, found {shown(prompts)}")
    return prompts


def text_or_ids(index: int, prompt: object) -> str | tuple[int, ...]:
    """Return the text or the ids of a prompt; `index` names it in errors."""
    if isinstance(prompt, Mapping):
        given = understood(prompt, ("prompt", "prompt_token_ids"), PROMPT_NAMES, f"prompt {index}")
        prompt = given.get("prompt_token_ids", given.get("prompt"))
    prompt = native(prompt)
    if isinstance(prompt, str):
        return prompt
    if not is_ids(prompt):
        raise UserError(f"prompt {index} must be text or a list of token ids, found {_what(prompt)}")
    return tuple(map(int, prompt))


def is_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    """Return whether this is a sequence of token ids, which may be empty."""
    if not isinstance(prompt, list | tuple):
        return False
    return all((type(token_id) is int and 0 <= token_id < SURELY) or _is_integer(token_id) for token_id in prompt)


def _is_integer(value: object) -> bool:
    try:
        converted(int, value)
    except WrongType:
        return False
    return True


def _what(prompt: object) -> str:
    """Return what a wrong prompt is, with the first item that is no id."""
    if not isinstance(prompt, list | tuple):
        return type(prompt).__name__
    wrong = next((item for item in prompt if not _is_integer(item)), None)
    return f"{type(prompt).__name__} with {shown(wrong)} in it"
