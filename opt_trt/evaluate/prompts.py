"""Make the prompts: article plus marker, as token ids, cut from the left so that the marker stays."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tqdm import tqdm

from opt_trt.errors import UserError
from opt_trt.evaluate.dataset import Article

MARKER = " TL;DR: "


class Encoder(Protocol):
    """The part of a tokenizer that prompts need."""

    def encode(self, text: str, max_length: int) -> tuple[int, ...]:
        """Return token ids, special tokens included, at most `max_length`: the first ones are dropped."""
        ...


@dataclass(frozen=True)
class Sample:
    """An article and its prompt."""

    article: Article
    prompt_ids: tuple[int, ...]
    is_cut: bool = False  # its first tokens are left out


@dataclass(frozen=True)
class Selection:
    """The articles to take: at most `count`, with prompts of at least `min_len` tokens, cut to `max_len`."""

    count: int
    min_len: int
    max_len: int


def prompt_text(article: str) -> str:
    """Return the prompt for a summary, exactly as TensorRT-LLM writes it."""
    return (article + MARKER).strip().replace(" n't", "n't")


def select_samples(articles: Iterable[Article], encoder: Encoder, selection: Selection) -> list[Sample]:
    """Return the first articles that are long enough; raise `UserError` if there are none."""
    samples: list[Sample] = []
    seen = 0
    for article in tqdm(articles, desc="tokenize", unit="article", disable=None, delay=2, leave=False):
        seen += 1
        text = prompt_text(article.text)
        whole = encoder.encode(text, sys.maxsize)
        is_cut = len(whole) > selection.max_len
        prompt_ids = encoder.encode(text, selection.max_len) if is_cut else whole
        if len(prompt_ids) >= selection.min_len:
            samples.append(Sample(article, prompt_ids, is_cut))
        if len(samples) == selection.count:
            break
    if not samples:
        raise UserError(
            f"nothing to summarize: none of {seen} rows has a prompt of at least --min_input_length "
            f"{selection.min_len} tokens (prompts are cut to --max_input_length {selection.max_len})"
        )
    return samples
