"""`SamplingParams`: how a prompt is continued, with vLLM's names and defaults. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from opt_trt.api.naming import other_names_taken
from opt_trt.api.wording import in_python
from opt_trt.config.field_types import check_field_types
from opt_trt.config.sampling import BEAM_OPTIONS, FILTERS, Sampling, check_number_of_outputs
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


if TYPE_CHECKING:

    @dataclass(frozen=True, kw_only=True)
    class OtherNames:
        """The names of `SAMPLING_NAMES` that are taken, for editors and type checkers."""

        max_new_tokens: InitVar[int | None] = None
        max_output_len: InitVar[int | None] = None
        max_completion_tokens: InitVar[int | None] = None
        min_length: InitVar[int | None] = None
        min_new_tokens: InitVar[int | None] = None
        random_seed: InitVar[int | None] = None
        beam_width: InitVar[int | None] = None
        num_beams: InitVar[int | None] = None
        num_return_sequences: InitVar[int | None] = None
        do_sample: InitVar[bool | None] = None
        end_id: InitVar[int | None] = None
        eos_token_id: InitVar[int | Sequence[int] | None] = None
        pad_id: InitVar[int | None] = None
        pad_token_id: InitVar[int | None] = None
        bad: InitVar[Sequence[str] | None] = None
        stop_words: InitVar[str | Sequence[str] | None] = None
        return_log_probs: InitVar[bool | None] = None
        output_log_probs: InitVar[bool | None] = None
        output_cum_log_probs: InitVar[bool | None] = None
        top_logprobs: InitVar[int | None] = None
        return_perf_metrics: InitVar[bool] = False
        exclude_input_from_output: InitVar[bool] = True
        spaces_between_special_tokens: InitVar[bool] = True
        output_kind: InitVar[object] = None
        skip_clone: InitVar[bool] = False
        use_cache: InitVar[bool | None] = None
        num_beam_groups: InitVar[int | None] = None
        diversity_penalty: InitVar[float | None] = None
        typical_p: InitVar[float | None] = None
        epsilon_cutoff: InitVar[float | None] = None
        eta_cutoff: InitVar[float | None] = None
        encoder_repetition_penalty: InitVar[float | None] = None

else:
    OtherNames = object


@other_names_taken
@dataclass(frozen=True, kw_only=True)
class SamplingParams(TokenOptions, OtherNames):
    """The way a prompt is continued: how many outputs, how long, by which tokens, and what is reported of them.

    Tokens are drawn from the whole vocabulary by default; `temperature=0` is greedy. `use_beam_search=True` searches
    with `best_of` beams for the most likely outputs instead and returns the best `n`, with log-probabilities. Further
    options, such as penalties, are those of `TokenOptions`, and other names for all of them are those of
    `SAMPLING_NAMES`: vLLM's, TensorRT-LLM's and transformers'. None stands for a default.
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
    prompt_logprobs: int | None = None  # the same of the prompt's tokens; needs LLM(gather_context_logits=True)
    allowed_token_ids: Sequence[int] | None = None  # the only ids that may be generated
    truncate_prompt_tokens: int | None = (
        None  # use that many tokens of the prompt, the last ones; -1: all the engine takes
    )
    skip_special_tokens: bool = True  # leave them out of the text
    detokenize: bool = True  # False: outputs have token ids and no text
    include_stop_str_in_output: bool = False  # leave the stop word that ended an output in its text
    add_special_tokens: bool = True  # put the begin token before a prompt of text, unless its tokenizer says not to

    def clone(self, **changes: Any) -> SamplingParams:
        """Return the same parameters with some changes: parameters themselves do not change."""
        return replace(self, **changes)

    def __post_init__(self, *other_names: object) -> None:
        with in_python():
            check_field_types(self)
        object.__setattr__(self, "early_stopping", self._early_stopping())
        for name in ("n", "best_of", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, found {value}")
        with in_python():
            check_number_of_outputs("n", self.n)
        self._check_beams()
        self._check_tokens()
        with in_python():
            chosen = self.of_sequence(0, ())
        if self.n > 1 and self.penalty_alpha:
            raise UserError(f"n={self.n} would give one contrastive output as many times; drop n or penalty_alpha")
        if self.n > 1 and not (chosen.draws or self.use_beam_search):
            raise UserError(f"n={self.n} would give one greedy output as many times; give a temperature above 0")

    def of_sequence(self, seed: int, bad_words: tuple[tuple[int, ...], ...]) -> Sampling:
        """Return how the tokens of the first output are chosen; `seed` is used where the user gave none."""
        beams = self.search_width > 1
        greedy = beams or self.top_k == 1  # whatever else is given: the largest logit is the only one left
        chosen = {f.name: getattr(self, f.name) for f in fields(TokenOptions)}
        chosen["temperature"] = 0.0 if greedy else self.temperature
        chosen["top_k"] = 0 if self.top_k == ALL_TOKENS else self.top_k
        return Sampling(
            min_length=self.min_tokens,
            bad_words=bad_words,
            logit_bias=tuple((self.logit_bias or {}).items()),
            allowed_ids=tuple(self.allowed_token_ids or ()),
            random_seed=seed if self.seed is None else self.seed,
            num_beams=self.search_width,
            log_probs=0 if beams and self.logprobs is None else self.logprobs,
            prompt_log_probs=self.prompt_logprobs,
            **chosen,
        )

    @property
    def search_width(self) -> int:
        """The outputs that are searched for at the same time; 1 without a search."""
        return (self.best_of or self.n) if self.use_beam_search else 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings of `stop`."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def _early_stopping(self) -> int | bool:
        """Return when a search ends; False, as transformers and vLLM call their default, says nothing without one."""
        idle = self.early_stopping is False and not self.use_beam_search
        return SamplingParams.early_stopping if idle else self.early_stopping

    def _check_tokens(self) -> None:
        if self.allowed_token_ids is not None and not len(self.allowed_token_ids):
            raise UserError("allowed_token_ids must have at least one id, found none; give None for all")
        if not (
            self.truncate_prompt_tokens is None or self.truncate_prompt_tokens == -1 or self.truncate_prompt_tokens >= 1
        ):
            raise UserError(f"truncate_prompt_tokens must be at least 1, or -1, found {self.truncate_prompt_tokens}")
        if self.stop_strings and not self.detokenize:
            raise UserError("stop looks for strings in the text, detokenize=False makes none; give stop_token_ids")

    def _check_beams(self) -> None:
        if not self.use_beam_search:
            names = BEAM_OPTIONS if self.best_of in (None, self.n) else ("best_of", *BEAM_OPTIONS)
            given = next((name for name in names if getattr(self, name) != getattr(SamplingParams, name)), None)
            if given:
                raise UserError(f"{given} says how to search with beams: give use_beam_search=True too, or drop it")
            return
        if self.search_width < max(2, self.n):
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
