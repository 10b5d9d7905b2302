"""The prompt: upstream's text, and a marker that survives every cut."""

from __future__ import annotations

import json

import pytest

from opt_trt.errors import UserError
from opt_trt.evaluate.dataset import Article
from opt_trt.evaluate.prompts import Selection, prompt_text, select_samples
from opt_trt.text.tokenizer import Tokenizer, load_tokenizer

SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
ARTICLES = [Article(n, "x" * n, "highlight") for n in (3, 30, 5, 40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Laid out as facebook's: a token per printable character, no merges."""
    directory = tmp_path_factory.mktemp("tokenizer")
    letters = ["Ġ", *map(chr, range(33, 127))]  # how byte-level BPE writes a space
    (directory / "vocab.json").write_text(json.dumps(SPECIAL | {c: n for n, c in enumerate(letters, len(SPECIAL))}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>", "eos_token": "</s>",
             "pad_token": "<pad>", "unk_token": "</s>"}
        )
    )  # fmt: skip
    return load_tokenizer(directory, add_special_tokens=True)


def test_the_prompt_is_upstreams_to_the_letter() -> None:
    assert prompt_text("  He did n't say . ") == "He didn't say .  TL;DR:"


def test_an_empty_article_leaves_the_marker() -> None:
    assert prompt_text("") == "TL;DR:"


@pytest.mark.parametrize("max_len", [8, 20, 100])
def test_the_marker_and_the_leading_token_survive_the_cut(tokenizer: Tokenizer, max_len: int) -> None:
    (sample,) = select_samples([Article(0, "long " * 50, "")], tokenizer, Selection(1, 0, max_len))
    assert len(sample.prompt_ids) == max_len and sample.prompt_ids[0] == 2
    assert tokenizer.decode(sample.prompt_ids).endswith(" TL;DR:"[-max_len + 1 :])


def test_a_short_article_is_not_cut(tokenizer: Tokenizer) -> None:
    (sample,) = select_samples([Article(0, "Hi", "")], tokenizer, Selection(1, 0, 923))
    assert tokenizer.decode(sample.prompt_ids) == "Hi TL;DR:" and len(sample.prompt_ids) == 10


def test_short_articles_are_left_out_and_keep_their_index(tokenizer: Tokenizer) -> None:
    samples = select_samples(ARTICLES, tokenizer, Selection(9, 20, 923))
    assert [s.article.index for s in samples] == [30, 40]


def test_no_more_articles_are_taken_than_asked_for(tokenizer: Tokenizer) -> None:
    samples = select_samples(ARTICLES, tokenizer, Selection(2, 0, 923))
    assert [s.article.index for s in samples] == [3, 30]


def test_nothing_long_enough_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="none of 4 rows has a prompt of at least --min_input_length 500"):
        select_samples(ARTICLES, tokenizer, Selection(9, 500, 923))
