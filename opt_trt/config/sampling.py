"""How the next token of a request is chosen: what may be asked for, and what contradicts itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from opt_trt.errors import UserError

SMALL, LARGE = 1e-5, 1e5  # beyond these, fp32 logits would overflow
RANGES: dict[str, tuple[float, float]] = {
    "top_k": (0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (SMALL, LARGE),
    "presence_penalty": (-LARGE, LARGE),
    "frequency_penalty": (-LARGE, LARGE),
    "no_repeat_ngram_size": (0, math.inf),
    "min_length": (0, math.inf),
    "random_seed": (0, math.inf),
    "num_beams": (1, math.inf),
    "length_penalty": (-10.0, 10.0),  # an output length to this power is an fp32 number
    "early_stopping": (0, 2),
    "beam_search_diversity_rate": (-LARGE, LARGE),
    "penalty_alpha": (0.0, 1.0),
}

BEAM_OPTIONS = ("length_penalty", "early_stopping", "beam_search_diversity_rate")  # without effect on one beam

# What changes logits, in transformers' order (presence and frequency, which it lacks, behind its repetition penalty),
# with the values that change nothing. The second table acts only when tokens are drawn.
PENALTIES: dict[str, tuple[object, ...]] = {
    "logit_bias": ((),),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words": ((),),
    "min_length": (0,),
}
FILTERS: dict[str, tuple[object, ...]] = {
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (0.0, 1.0),
    "min_p": (0.0,),
}


@dataclass(frozen=True)
class SamplingParams:
    """How the new tokens of one sequence are chosen. Names and defaults are TensorRT-LLM's: greedy.

    Tokens are drawn when `top_k` is not 1 and `temperature` not 0, unless `penalty_alpha` is given. `top_k` 0 keeps all
    tokens, `top_p` 0 as many as 1.0 does. Repetition and n-grams look at prompt and output, presence and frequency at
    the output alone.
    """

    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 0.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0  # new tokens before the end id or a stop word may end the sequence
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of ids that must not be generated
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to the logit of an id; -inf bans it
    random_seed: int = 0
    sequence: int = 0  # which of several sequences of one prompt: each draws random numbers of its own
    num_beams: int = 1  # more than one: search for the most likely outputs
    length_penalty: float = 1.0  # beams are ranked by log-probability over new tokens to this power
    early_stopping: int = (
        1  # 1: when as many outputs as beams are finished; 0: when no better one is likely; 2: possible
    )
    beam_search_diversity_rate: float = 0.0  # times the place of a beam, added when its continuations are ranked
    penalty_alpha: float = 0.0  # above 0: contrastive search among `top_k` candidates; the weight of being alike
    log_probs: int | None = None  # report the log-probability of each new token and of that many most likely ones

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                bounds = f"at least {least}" if most == math.inf else f"from {least:g} to {most:g}"
                raise UserError(f"--{name} must be {bounds}, found {getattr(self, name)}")
        if self.temperature != 0 and not SMALL <= self.temperature <= LARGE:
            raise UserError(
                f"--temperature must be 0 (greedy) or from {SMALL:g} to {LARGE:g}, found {self.temperature}"
            )
        if self.log_probs is not None and self.log_probs < 0:
            raise UserError(f"log_probs must be the number of alternatives, 0 or more, found {self.log_probs}")
        if () in self.bad_words:
            raise UserError("bad_words has a word without tokens; drop it")
        if not all(bias <= LARGE for _, bias in self.logit_bias):
            raise UserError(f"logit_bias must be numbers up to {LARGE:g} (-inf bans a token); found others")
        self._check_candidates()
        self._check_contradictions()
        self._check_beams()

    @property
    def draws(self) -> bool:
        """Whether chance has a say; otherwise the largest logit wins."""
        return self.top_k != 1 and self.temperature != 0 and not self.penalty_alpha

    @property
    def num_rows(self) -> int:
        """Rows of a step a sequence may need: its beams, its candidates, or one."""
        return self.top_k if self.penalty_alpha else self.num_beams

    @cached_property
    def processors(self) -> tuple[str, ...]:
        """The names of those rows of the two tables that change logits here, in order."""
        table = PENALTIES | FILTERS if self.draws else PENALTIES
        return tuple(name for name, neutral in table.items() if getattr(self, name) not in neutral)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token id named."""
        return (*(i for i, _ in self.logit_bias), *(i for word in self.bad_words for i in word))

    def _check_candidates(self) -> None:
        """Contrastive search needs several candidates, and neither chance nor another search."""
        if not self.penalty_alpha:
            return
        if self.top_k < 2:
            raise UserError(
                f"--penalty_alpha {self.penalty_alpha} compares the --top_k most likely tokens, found --top_k "
                f"{self.top_k}; give --top_k 4"
            )
        if self.num_beams > 1:
            raise UserError(
                f"--penalty_alpha {self.penalty_alpha} and --num_beams {self.num_beams} are two ways to search; "
                "drop one of the two"
            )
        drawing = ((name, getattr(self, name)) for name in FILTERS if name != "top_k")
        given = next(((name, value) for name, value in drawing if value not in FILTERS[name]), None)
        if given:
            raise UserError(
                f"--penalty_alpha {self.penalty_alpha} leaves nothing to chance, --{given[0]} {given[1]} would have no "
                "effect; drop one of the two"
            )

    def _check_beams(self) -> None:
        if self.num_beams > 1 and self.draws:
            raise UserError(
                f"--num_beams {self.num_beams} searches for the most likely outputs, --top_k {self.top_k} draws them "
                "by chance; drop one of the two"
            )
        given = next((name for name in BEAM_OPTIONS if getattr(self, name) != getattr(SamplingParams, name)), None)
        if self.num_beams == 1 and given:
            raise UserError(f"--{given} {getattr(self, given)} has no effect with one beam; give --num_beams 4")

    def _check_contradictions(self) -> None:
        """A filter that greedy decoding would ignore, or no filter where one of two is needed."""
        if self.temperature == 0:
            return  # the limit of any distribution is its largest logit
        for name, neutral in FILTERS.items():
            if self.top_k == 1 and name != "top_k" and getattr(self, name) not in neutral:
                raise UserError(
                    f"--{name} {getattr(self, name)} has no effect with --top_k 1, the default, which is greedy; "
                    "give --top_k 50, or --top_k 0 --top_p 0.9"
                )
        if self.top_k == self.top_p == self.min_p == 0:
            raise UserError(
                "--top_k 0 leaves it to --top_p or --min_p which tokens to keep: give --top_p 0.9, or --top_p 1.0 for "
                "all; greedy decoding is --top_k 1"
            )


GREEDY = SamplingParams()
