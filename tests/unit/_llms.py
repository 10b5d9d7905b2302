"""`LLM`s over decoders without weights, whose letters are tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from opt_trt import LLM
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import StepInputs, StepOutputs
from opt_trt.text.tokenizer import load_tokenizer
from tests.unit._decoders import SumDecoder, spec
from tests.unit._tokenizers import VOCAB_SIZE, write_tokenizer

SPEC = spec(vocab_size=VOCAB_SIZE)


@dataclass
class NextLetter(SumDecoder):
    """`Decoder` that continues `a` with `b`, `b` with `c`, …; all other tokens are equally unlikely."""

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        outputs = super().step(inputs, kv_cache)
        following = (inputs.input_ids[inputs.last_token_ids] + 1) % self.spec.vocab_size
        return replace(outputs, logits=9 * torch.nn.functional.one_hot(following, self.spec.vocab_size).float())


def letters(directory: Path, before_step: Callable[[StepInputs], Any] = lambda inputs: None) -> LLM:
    """Return an `LLM` that knows the alphabet; its tokenizer is written to a directory."""
    decoder = NextLetter(SPEC, before_step=before_step)
    return LLM.over(DecoderSession(decoder, KvCacheLimit()), load_tokenizer(write_tokenizer(directory)))


def sums(decoder: SumDecoder | None = None) -> LLM:
    """Return an `LLM` without a tokenizer, over sums."""
    return LLM.over(DecoderSession(decoder or SumDecoder(), KvCacheLimit()))
