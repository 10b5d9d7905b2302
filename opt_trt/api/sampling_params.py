"""What may be asked for with a prompt, by vLLM's names and with its defaults; standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opt_trt.api.wording import in_python
from opt_trt.config import sampling
from opt_trt.errors import UserError

SAME_NAME = (
    "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size",
    "penalty_alpha",
)  # fmt: skip
ALL_TOKENS = -1  # older spelling of top_k 0


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a prompt is continued: how often, how far, by which tokens, and what is told of them.

    Tokens are drawn from the whole vocabulary unless told otherwise; `temperature=0` is greedy.
    """

    n: int = 1  # outputs of the prompt
    max_tokens: int | None = 16  # new tokens at most; None: as many as the engine takes
    min_tokens: int = 0  # new tokens before the end id or a stop word may end an output
    temperature: float = 1.0
    top_k: int = 0  # 0 and -1 keep all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    penalty_alpha: float = 0.0  # above 0: contrastive search among `top_k` candidates, by transformers' name
    seed: int | None = None  # None: one of the LLM's, another for each request
    stop: str | Sequence[str] | None = None  # strings that end an output and are left out of its text
    stop_token_ids: Sequence[int] | None = None  # ids that do
    bad_words: Sequence[str] | None = None  # never generated, as the tokenizer cuts them (" London" with its space)
    logit_bias: Mapping[int, float] | None = None  # added to the logit of an id; -inf bans it
    ignore_eos: bool = False
    logprobs: int | None = None  # tell the log-probability of each new token and of that many most likely ones
    skip_special_tokens: bool = True  # in the text

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, found {value}")
        with in_python():
            chosen = self.of_sequence(0, ())
        if self.n > 1 and self.penalty_alpha:
            raise UserError(f"n={self.n} would give one contrastive output as many times; drop n or penalty_alpha")
        if self.n > 1 and not chosen.draws:
            raise UserError(f"n={self.n} would give one greedy output as many times; give a temperature above 0")

    def of_sequence(self, seed: int, bad_words: tuple[tuple[int, ...], ...]) -> sampling.SamplingParams:
        """How the tokens of the first output are chosen; `seed` is for those who brought none."""
        greedy = self.top_k == 1  # whatever else is given: the largest logit is the only one left
        return sampling.SamplingParams(
            temperature=0.0 if greedy else self.temperature,
            top_k=0 if self.top_k == ALL_TOKENS else self.top_k,
            min_length=self.min_tokens,
            bad_words=bad_words,
            logit_bias=tuple((self.logit_bias or {}).items()),
            random_seed=seed if self.seed is None else self.seed,
            log_probs=self.logprobs,
            **{name: getattr(self, name) for name in SAME_NAME},
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as several strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
