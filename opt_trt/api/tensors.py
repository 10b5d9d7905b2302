"""Generate as transformers does: from a tensor of padded prompts to a tensor of prompts with their outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from opt_trt.api.prompt_requests import PromptRequests, RequestFactory, one_per_output
from opt_trt.config.field_types import check_field_types, shown
from opt_trt.config.sampling import FILTERS, Sampling, check_number_of_outputs, of_its_own
from opt_trt.config.sampling_options import CommonOptions, Kind, options_of
from opt_trt.errors import UserError
from opt_trt.runtime.request import Request
from opt_trt.step import DecoderSpec

SMALLEST, LARGEST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
DRAWING = tuple(FILTERS)
BEAMS = tuple(name for name, row in options_of(CommonOptions).items() if row.kind is Kind.BEAMS)
SEARCHING = ("num_beams", *BEAMS, "early_stopping")
CONTRASTIVE = ("penalty_alpha", "top_k")
# The option that each of these needs to have an effect.
NEEDS = dict.fromkeys(DRAWING, "do_sample=True") | dict.fromkeys(SEARCHING[1:], "num_beams=4")
EARLY_STOPPING: dict[bool | str, int] = {False: 0, True: 1, "never": 2}  # transformers' values and TensorRT-LLM's


@dataclass(frozen=True, kw_only=True)
class TensorOptions(CommonOptions):
    """Options of `generate_ids`, with transformers' names and defaults.

    Further options, such as penalties, are those of `CommonOptions`. `max_length` and `min_length`, which count the
    prompt, too, are understood.
    """

    max_new_tokens: int  # default: 20, or fewer where the engine takes no more
    eos_token_id: int | Sequence[int] | None  # any of them ends a row; default: the model's; None never ends early
    pad_token_id: int  # default: the model's
    do_sample: bool = False
    top_k: int = 50
    top_p: float = 1.0
    min_new_tokens: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    num_beams: int = 1
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    stop_strings: str | Sequence[str] | None = None  # end a row, which keeps them
    seed: int | None = None  # of the tokens drawn, in each row others; transformers has one seed for all calls

    @property
    def choosing(self) -> tuple[str, ...]:
        """The options that choose a token from the logits, once penalties have changed these."""
        ways = {DRAWING: self.do_sample, SEARCHING: self.num_beams != 1, CONTRASTIVE: self.penalty_alpha != 0}
        return next((names for names, asked in ways.items() if asked), ())

    def end_ids(self, vocab_size: int) -> tuple[int, ...]:
        """Return the tokens that end a row; others, such as transformers' -1 for none, never occur."""
        given = self.eos_token_id
        ids = [given] if isinstance(given, int) else given or ()
        return tuple(token_id for token_id in ids if 0 <= token_id < vocab_size)

    def sampling(self, row: int, seed: int) -> Sampling:
        """Return how the tokens of a row's first output are chosen; `seed` is used where the user gave none."""
        idle = {*DRAWING, *SEARCHING, *CONTRASTIVE}.difference(self.choosing)
        given = {f.name: getattr(self, f.name) for f in fields(CommonOptions)}
        given |= {"num_beams": self.num_beams, "early_stopping": EARLY_STOPPING[self.early_stopping]}
        return Sampling(
            min_length=self.min_new_tokens,
            bad_words=tuple(map(tuple, self.bad_words_ids)),
            random_seed=seed if self.seed is None else of_its_own(self.seed, row) if self.do_sample else self.seed,
            **{name: value for name, value in given.items() if name not in idle},
        )


def tensor_options(given: Mapping[str, Any], spec: DecoderSpec) -> TensorOptions:
    """Return the options that keyword arguments give; a `UserError` names what is idle or of another type."""
    options = TensorOptions(**_defaults(spec) | dict(given))
    check_field_types(options)
    _refuse_contradictions(options)
    _check_number_of_outputs(options)
    if not SMALLEST <= options.pad_token_id <= LARGEST:
        raise UserError(f"pad_token_id must be a number of 64 bits, found {shown(options.pad_token_id)}")
    return options


def _defaults(spec: DecoderSpec) -> dict[str, Any]:
    return {"eos_token_id": spec.end_ids, "pad_token_id": spec.pad_id}


def _refuse_contradictions(options: TensorOptions) -> None:
    """Refuse two ways to choose tokens at once, and options of a way that was not asked for."""
    ways = {
        "do_sample=True": options.do_sample,
        f"num_beams={options.num_beams}": options.num_beams != 1,
        f"penalty_alpha={options.penalty_alpha}": options.penalty_alpha != 0,
    }
    asked = [way for way, is_asked in ways.items() if is_asked]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} are different ways to choose tokens; drop all but one")
    changed = (name for name in NEEDS if getattr(options, name) != getattr(TensorOptions, name))
    idle = next((name for name in changed if name not in options.choosing), None)
    if idle:
        raise UserError(f"{idle} would change nothing without {NEEDS[idle]}; give that too, or drop it")
    if options.early_stopping not in EARLY_STOPPING:
        raise UserError(f'early_stopping must be False, True or "never", found {options.early_stopping!r}')


def _check_number_of_outputs(options: TensorOptions) -> None:
    check_number_of_outputs("num_return_sequences", options.num_return_sequences)
    most = math.inf if options.do_sample else options.num_beams
    if not 1 <= options.num_return_sequences <= max(1, most):
        raise UserError(
            "num_return_sequences must be 1, or more with do_sample=True, or at most num_beams, "
            f"found {options.num_return_sequences}"
        )


def row_requests(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, options: TensorOptions, factory: RequestFactory
) -> list[PromptRequests]:
    """Return checked requests for the rows of a tensor."""
    rows, ends = [], options.end_ids(factory.session.spec.vocab_size)
    for row, ids in enumerate(_prompts(input_ids, _mask(input_ids, attention_mask, options))):
        chosen = options.sampling(row, factory.seeds.getrandbits(32))
        stops = factory.stopping_at(options.stop_strings)
        request = Request(ids, options.max_new_tokens, sampling=chosen, stop_words=stops).ending_at(ends)
        factory.session.check(request, row)
        if options.num_beams == 1:
            rows.append(PromptRequests(None, one_per_output(request, options.num_return_sequences)))
        else:
            rows.append(PromptRequests(None, (request,), num_beams=options.num_return_sequences))
    return rows


def join_rows(input_ids: torch.Tensor, outputs: Sequence[Sequence[int]], options: TensorOptions) -> torch.Tensor:
    """Return each row of `input_ids` once for each of its outputs, followed by that output: int64."""
    prompts = input_ids.repeat_interleave(options.num_return_sequences, dim=0)
    new = torch.full((len(outputs), max(map(len, outputs), default=0)), options.pad_token_id)
    for row, ids in zip(new, outputs, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return torch.cat((prompts.long(), new.to(prompts.device)), dim=1)


def _mask(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, options: TensorOptions) -> torch.Tensor:
    """Return where `input_ids` has prompts.

    Without `attention_mask` that is everywhere but at the pad id, unless the pad id is the end id as well.
    """
    if input_ids.ndim != 2:
        raise UserError(
            f"input_ids must be integers of shape [rows, tokens], found {input_ids.dtype} of {tuple(input_ids.shape)}"
        )
    if attention_mask is None:
        plain = options.pad_token_id in options.end_ids(options.pad_token_id + 1)
        return torch.ones_like(input_ids, dtype=torch.bool) if plain else input_ids != options.pad_token_id
    if attention_mask.shape != input_ids.shape:
        raise UserError(
            f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, "
            f"found {tuple(attention_mask.shape)}"
        )
    return attention_mask.bool()


def _prompts(input_ids: torch.Tensor, mask: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the ids of each row without its padding, which must be on the left."""
    prompts = []
    for row, (ids, kept) in enumerate(zip(input_ids, mask, strict=True)):
        first = len(ids) - int(kept.sum())
        if not kept[first:].all():
            raise UserError(f"row {row} of input_ids has padding behind its first token; pad on the left")
        prompts.append(tuple(ids[first:].tolist()))
    return prompts
