"""The options of sampling, one row each: a row has all that other modules must know of its option.

A row is a dataclass field, so that editors and mypy know its type and default in every interface. An interface is a
subclass of one of the classes below: it inherits the rows of that class, and declares only the fields whose default
differs. To add an option, add a row here, what it does (`runtime/sampling/`: `processors` or `filters`, and `on_device`
for a filter) and the keyword by which TensorRT-LLM takes it (`backends/trtllm/keywords`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum
from math import inf
from typing import Any

from opt_trt.config.flags import BEAMS, SAMPLING, Flag

SMALL, LARGE = 1e-5, 1e5  # beyond these, fp32 logits would overflow


class Kind(IntEnum):
    """The effect of an option. The first five change logits, in this order, which is transformers'."""

    BIAS = 1
    PENALTY = 2
    BAN = 3
    END = 4  # bans the end of the output
    FILTER = 5  # acts only where tokens are drawn
    BEAMS = 6  # acts only where several beams are searched
    SEARCH = 7  # chooses another way to search
    OTHER = 8


@dataclass(frozen=True)
class Option:
    """The properties of an option beside its type, default and help."""

    kind: Kind
    least: float = -inf
    most: float = inf
    neutral: tuple[Any, ...] = ()  # the values that change nothing; the first one is sent to devices
    transformers: str | None = None  # the keyword of transformers' `generate`; None if it has none
    transformers_off: object = None  # the value for transformers in place of a neutral one; None: no value


def option(
    default: Any,
    kind: Kind,
    help: str | None = None,
    bounds: tuple[float, float] = (-inf, inf),
    neutral: tuple[Any, ...] | None = None,
    group: str = SAMPLING,
    **more: Any,
) -> Any:
    """Return a dataclass field that is an option of sampling, and a flag of the commands if it has a help text."""
    row = Option(kind, *bounds, neutral=(default,) if neutral is None else neutral, **more)
    flag = {} if help is None else {"flag": Flag(help, group=BEAMS if kind is Kind.BEAMS else group)}
    return field(default=default, metadata={"option": row} | flag)


def options_of(config_class: type) -> dict[str, Option]:
    """Return the rows of a dataclass by the names of its fields."""
    return {f.name: f.metadata["option"] for f in fields(config_class) if "option" in f.metadata}


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of all interfaces: the commands, `SamplingParams` and `generate_ids`."""

    temperature: float = option(
        1.0, Kind.FILTER, "divides logits before tokens are drawn; 0 is greedy", transformers="temperature"
    )
    top_k: int = option(
        1, Kind.FILTER, "draw from this many most likely tokens; 1 is greedy, 0 keeps all", (0, inf), neutral=(0,),
        transformers="top_k", transformers_off=0,  # it would keep 50
    )  # fmt: skip
    top_p: float = option(
        0.0, Kind.FILTER, "draw from the fewest tokens whose probabilities add up to this; 0 and 1 keep all",
        (0.0, 1.0), neutral=(1.0, 0.0), transformers="top_p",
    )  # fmt: skip
    min_p: float = option(
        0.0, Kind.FILTER, "draw from tokens at least this many times as likely as the likeliest; 0 keeps all",
        (0.0, 1.0), transformers="min_p",
    )  # fmt: skip
    repetition_penalty: float = option(
        1.0, Kind.PENALTY, "divides positive logits of tokens in prompt or output, multiplies negative ones",
        (SMALL, LARGE), transformers="repetition_penalty",
    )  # fmt: skip
    no_repeat_ngram_size: int = option(
        0, Kind.BAN, "no sequence of this many tokens occurs twice; 0 is off", (0, inf),
        transformers="no_repeat_ngram_size",
    )  # fmt: skip
    # An output length to a power within these bounds is an fp32 number.
    length_penalty: float = option(
        1.0, Kind.BEAMS, "beams are ranked by log-probability over output length to this power", (-10.0, 10.0),
        transformers="length_penalty",
    )  # fmt: skip
    penalty_alpha: float = option(
        0.0, Kind.SEARCH,
        "above 0: contrastive search among the --top_k most likely tokens; the weight of being unlike tokens before",
        (0.0, 1.0),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TokenOptions(CommonOptions):
    """Options of the commands and of `SamplingParams`."""

    presence_penalty: float = option(
        0.0, Kind.PENALTY, "subtracted from logits of tokens in the output", (-LARGE, LARGE)
    )
    frequency_penalty: float = option(
        0.0, Kind.PENALTY, "subtracted from logits of tokens in the output, once for each time they occur",
        (-LARGE, LARGE),
    )  # fmt: skip
    early_stopping: int | bool = option(
        1, Kind.BEAMS,
        "end a search 1: with as many outputs as beams, 0: when better ones are unlikely, 2: when none can be better",
        (0, 2), transformers="early_stopping",
    )  # fmt: skip
    beam_search_diversity_rate: float = option(
        0.0, Kind.BEAMS, "times the place of a beam (0 is the best); added when its tokens are ranked", (-LARGE, LARGE)
    )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(TokenOptions):
    """Options of the commands, with TensorRT-LLM's names and defaults."""

    min_length: int = option(
        0, Kind.END, "fewest new tokens before the end id or a stop word may end the output", (0, inf),
        transformers="min_new_tokens",
    )  # fmt: skip
    random_seed: int = option(
        0, Kind.OTHER, "seed of the tokens drawn; a prompt's tokens do not depend on the prompts beside it", (0, inf),
        transformers="torch.manual_seed",
    )  # fmt: skip
    num_beams: int = option(
        1,
        Kind.SEARCH,
        "search for the most likely outputs with this many beams",
        (1, inf),
        transformers="num_beams",
        group=BEAMS,
    )
