"""`SamplingParams`: how a prompt is continued, with vLLM's names and defaults. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from opt_trt.api.wording import in_python
from opt_trt.config.field_types import check_field_types
from opt_trt.config.sampling import BEAM_OPTIONS, FILTERS, Sampling
from opt_trt.config.sampling_options import TokenOptions
from opt_trt.errors import UserError

ALL_TOKENS = -1  # older spelling of top_k 0
# What draws or ends a single output, with the values that do neither.
IDLE_ON_BEAMS: dict[str, tuple[object, ...]] = {
    **{name: neutral[:1] for name, neutral in FILTERS.items()},
    "temperature": (0, 1.0),
    "top_k": (0, 1, ALL_TOKENS),
    "penalty_alpha": (0.0,),
    "stop": (None, (), []),
    "stop_token_ids": (None, (), []),
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams(TokenOptions):
    """The way a prompt is continued: how many outputs, how long, by which tokens, and what is reported of them.

    Tokens are drawn from the whole vocabulary by default; `temperature=0` is greedy. `use_beam_search=True` searches
    with `best_of` beams for the most likely outputs instead and returns the best `n`, with log-probabilities. Further
    options, such as penalties, are those of `TokenOptions`.
    """

    n: int = 1  # outputs of the prompt
    use_beam_search: bool = False
    best_of: int | None = None  # beams of a search; None: n
    max_tokens: int | None = 16  # new tokens at most; None: as many as the engine takes
    min_tokens: int = 0  # new tokens before the end id or a stop word may end an output
    top_k: int = 0  # 0 and -1 keep all tokens
    top_p: float = 1.0
    seed: int | None = None  # None: the LLM draws another seed for each request
    stop: str | Sequence[str] | None = None  # strings that end an output and are left out of its text
    stop_token_ids: Sequence[int] | None = None  # ids that end an output
    bad_words: str | Sequence[str] | None = None  # never generated, with or without a space before them
    logit_bias: Mapping[int, float] | None = None  # added to the logit of an id; -inf bans it
    ignore_eos: bool = False
    logprobs: int | None = None  # report the log-probability of each new token and of that many most likely ones
    skip_special_tokens: bool = True  # leave them out of the text
    add_special_tokens: bool = True  # put the begin token before a prompt of text, unless its tokenizer says not to

    def __post_init__(self) -> None:
        with in_python():
            check_field_types(self)
        for name in ("n", "best_of", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, found {value}")
        self._check_beams()
        with in_python():
            chosen = self.of_sequence(0, ())
        if self.n > 1 and self.penalty_alpha:
            raise UserError(f"n={self.n} would give one contrastive output as many times; drop n or penalty_alpha")
        if self.n > 1 and not (chosen.draws or self.use_beam_search):
            raise UserError(f"n={self.n} would give one greedy output as many times; give a temperature above 0")

    def of_sequence(self, seed: int, bad_words: tuple[tuple[int, ...], ...]) -> Sampling:
        """Return how the tokens of the first output are chosen; `seed` is used where the user gave none."""
        beams = self.num_beams > 1
        greedy = beams or self.top_k == 1  # whatever else is given: the largest logit is the only one left
        chosen = {f.name: getattr(self, f.name) for f in fields(TokenOptions)}
        chosen["temperature"] = 0.0 if greedy else self.temperature
        chosen["top_k"] = 0 if self.top_k == ALL_TOKENS else self.top_k
        return Sampling(
            min_length=self.min_tokens,
            bad_words=bad_words,
            logit_bias=tuple((self.logit_bias or {}).items()),
            random_seed=seed if self.seed is None else self.seed,
            num_beams=self.num_beams,
            log_probs=0 if beams and self.logprobs is None else self.logprobs,
            **chosen,
        )

    @property
    def num_beams(self) -> int:
        """The outputs that are searched for at the same time; 1 without a search."""
        return (self.best_of or self.n) if self.use_beam_search else 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings of `stop`."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def _check_beams(self) -> None:
        if not self.use_beam_search:
            names = ("best_of", *BEAM_OPTIONS)
            given = next((name for name in names if getattr(self, name) != getattr(SamplingParams, name)), None)
            if given:
                raise UserError(f"{given} says how to search with beams: give use_beam_search=True too, or drop it")
            return
        if self.num_beams < max(2, self.n):
            raise UserError(
                f"use_beam_search=True needs more than one beam and at least n={self.n}, found best_of={self.best_of}; "
                f"give best_of={max(4, self.n)}"
            )
        clash = next((name for name, idle in IDLE_ON_BEAMS.items() if getattr(self, name) not in idle), None)
        if clash:
            raise UserError(
                f"{clash}={getattr(self, clash)!r} draws or ends a single output, use_beam_search=True ranks several; "
                "drop one of the two"
            )
