"""All options that choose the next token of a request, as one value that refuses contradictions."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from random import Random

from opt_trt.config.field_types import check_field_types
from opt_trt.config.sampling_options import LARGE, SMALL, Kind, Option, SamplingOptions, option, options_of
from opt_trt.errors import UserError, spelled


@dataclass(frozen=True, kw_only=True)
class Sampling(SamplingOptions):
    """The options that choose the new tokens of one sequence. Names and defaults are TensorRT-LLM's: greedy.

    Tokens are drawn when `top_k` is not 1 and `temperature` is not 0, unless `penalty_alpha` is given. `top_k` 0 keeps
    all tokens, and so does `top_p` 0 or 1. Repetition and n-grams look at prompt and output, presence and frequency at
    the output alone. The options declared here are no flags, or flags of another type.
    """

    bad_words: tuple[tuple[int, ...], ...] = option((), Kind.BAN)  # sequences of ids that must not be generated
    allowed_ids: tuple[int, ...] = option((), Kind.BAN)  # the only ids that may be generated; () is all
    logit_bias: tuple[tuple[int, float], ...] = option((), Kind.BIAS)  # added to the logit of an id; -inf bans it
    sequence: int = option(0, Kind.OTHER)  # one of several sequences of a prompt: each has random numbers of its own
    log_probs: int | None = option(None, Kind.OTHER)  # report the log-probability of each new token and of so many more
    prompt_log_probs: int | None = option(None, Kind.OTHER)  # the same of the prompt's tokens

    def __post_init__(self) -> None:
        check_field_types(self)
        self._check_ranges()
        self._check_candidates()
        self._check_contradictions()
        self._check_beams()

    def for_output(self, number: int) -> Sampling:
        """Return the same options for another output of the prompt; thousands of them are not checked again."""
        other = copy(self)
        object.__setattr__(other, "sequence", number)
        return other

    @property
    def draws(self) -> bool:
        """True if tokens are drawn by chance; otherwise the largest logit wins."""
        return self.top_k != 1 and self.temperature != 0 and not self.penalty_alpha

    @property
    def num_rows(self) -> int:
        """The rows of a step that a sequence may need: its beams, its candidates, or one."""
        return self.top_k if self.penalty_alpha else self.num_beams

    @cached_property
    def processors(self) -> tuple[str, ...]:
        """The names of the options that change logits, in the order in which they are applied."""
        table = PENALTIES | FILTERS if self.draws else PENALTIES
        return tuple(name for name, neutral in table.items() if getattr(self, name) not in neutral)

    @cached_property
    def filters(self) -> tuple[float, ...]:
        """A number for each of `FILTERS`, in their order: its value, or the first neutral one if it has no effect."""
        values = ((getattr(self, name), neutral) for name, neutral in FILTERS.items())
        return tuple(neutral[0] if value in neutral else value for value, neutral in values)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All token ids that the options name."""
        return (*self.allowed_ids, *(i for i, _ in self.logit_bias), *(i for word in self.bad_words for i in word))

    def _check_ranges(self) -> None:
        for name, row in OPTIONS.items():
            if (row.least, row.most) != (-math.inf, math.inf) and not row.least <= getattr(self, name) <= row.most:
                bounds = f"at least {row.least}" if row.most == math.inf else f"from {row.least:g} to {row.most:g}"
                raise UserError(f"{spelled(name)} must be {bounds}, found {getattr(self, name)}")
        if self.temperature != 0 and not SMALL <= self.temperature <= LARGE:
            raise UserError(
                f"{spelled('temperature')} must be 0 (greedy) or from {SMALL:g} to {LARGE:g}, found {self.temperature}"
            )
        for name in ("log_probs", "prompt_log_probs"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(
                    f"{spelled(name)} must be the number of alternatives, 0 or more, found {getattr(self, name)}"
                )
        if () in self.bad_words:
            raise UserError("bad_words has a word without tokens; drop it")
        if not all(bias <= LARGE for _, bias in self.logit_bias):
            raise UserError(f"logit_bias must be numbers up to {LARGE:g} (-inf bans a token); found others")

    def _check_candidates(self) -> None:
        """Refuse contrastive search without several candidates, with chance, or with another search."""
        if not self.penalty_alpha:
            return
        if self.top_k < 2:
            raise UserError(
                f"{self._given('penalty_alpha')} compares the {spelled('top_k')} most likely tokens, found "
                f"{self._given('top_k')}; give {spelled('top_k')} 4"
            )
        if self.num_beams > 1:
            raise UserError(
                f"{self._given('penalty_alpha')} and {self._given('num_beams')} are two ways to search; "
                "drop one of the two"
            )
        if idle := self._filter_beside_top_k():
            raise UserError(
                f"{self._given('penalty_alpha')} leaves nothing to chance, {self._given(idle)} would have no effect; "
                "drop one of the two"
            )

    def _check_contradictions(self) -> None:
        """Refuse a filter that greedy decoding would ignore, and `top_k` 0 without another filter."""
        if self.temperature == 0:
            return  # the limit of any distribution is its largest logit
        idle = self._filter_beside_top_k()
        if self.top_k == 1 and idle:
            raise UserError(
                f"{self._given(idle)} has no effect with {spelled('top_k')} 1, the default, which is greedy; "
                f"give {spelled('top_k')} 50, or {spelled('top_k')} 0 {spelled('top_p')} 0.9"
            )
        if self.top_k == 0 and all(getattr(self, name) == getattr(Sampling, name) for name in SHARES):
            raise UserError(
                f"{spelled('top_k')} 0 leaves it to {' or '.join(map(spelled, SHARES))} which tokens to keep: give "
                f"{spelled('top_p')} 0.9, or {spelled('top_p')} 1.0 for all; greedy decoding is {spelled('top_k')} 1"
            )

    def _check_beams(self) -> None:
        if self.num_beams > 1 and self.draws:
            raise UserError(
                f"{self._given('num_beams')} searches for the most likely outputs, {self._given('top_k')} draws them "
                "by chance; drop one of the two"
            )
        given = next((name for name in BEAM_OPTIONS if getattr(self, name) != getattr(Sampling, name)), None)
        if self.num_beams == 1 and given:
            raise UserError(f"{self._given(given)} has no effect with one beam; give {spelled('num_beams')} 4")

    def _given(self, name: str) -> str:
        """Return an option with its value, for the text of an error."""
        return f"{spelled(name)} {getattr(self, name)}"

    def _filter_beside_top_k(self) -> str | None:
        """Return the first filter other than `top_k` that is given."""
        given = (name for name, neutral in FILTERS.items() if getattr(self, name) not in neutral)
        return next((name for name in given if name != "top_k"), None)


def of_its_own(seed: int, what: object) -> int:
    """Return the seed of one of several things that share a seed, told apart by `what`; 0 keeps the seed itself."""
    return Random(f"{seed}/{what}").getrandbits(32) if what != 0 else seed


def _of_kinds(*kinds: Kind) -> dict[str, Option]:
    """Return the options of some kinds, in the order in which they change logits."""
    chosen = [(name, row) for name, row in OPTIONS.items() if row.kind in kinds]
    return dict(sorted(chosen, key=lambda item: item[1].kind))


OPTIONS = options_of(Sampling)
BEAM_OPTIONS = tuple(_of_kinds(Kind.BEAMS))  # they have no effect on one beam

# The options that change logits, in order, with their neutral values. Filters have an effect on drawn tokens only.
CHANGING = (Kind.BIAS, Kind.PENALTY, Kind.BAN, Kind.END)
PENALTIES = {name: row.neutral for name, row in _of_kinds(*CHANGING).items()}
FILTERS: dict[str, tuple[float, ...]] = {name: row.neutral for name, row in _of_kinds(Kind.FILTER).items()}
SHARES = tuple(name for name in FILTERS if name not in ("temperature", "top_k"))  # they keep tokens by probability

GREEDY = Sampling()
MOST_OUTPUTS = 16_384  # of one prompt; vLLM's limit. Each takes 2.6 KB while it waits


def check_number_of_outputs(name: str, number: int) -> None:
    """Refuse more outputs of a prompt than `MOST_OUTPUTS`; `name` is the option's."""
    if number > MOST_OUTPUTS:
        raise UserError(f"{spelled(name)} must be at most {MOST_OUTPUTS}, found {number}")
