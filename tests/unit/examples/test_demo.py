"""The demo is as its README says: generated from seeds, tested on unseen names, and readable by transformers."""

import importlib.util
import json
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

DEMO = Path(__file__).parents[3] / "examples" / "demo"
PROMPT_TOKENS = 923
MEGABYTES = 10


def load_news() -> ModuleType:
    """Load the generator, which is outside the package."""
    spec = importlib.util.spec_from_file_location("demo_news", DEMO / "news.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


news = load_news()


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return (DEMO / "test.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO / "model")


def test_a_seed_and_an_index_always_give_the_same_story() -> None:
    assert news.story("train", 1, 5) == news.story("train", 1, 5)


def test_another_seed_index_split_or_length_gives_another_story() -> None:
    keys = [("train", 1, 5), ("train", 1, 6), ("train", 2, 5), ("test", 1, 5), ("train", 1, 5, "long")]
    assert all(news.story(*one).article != news.story(*other).article for one, other in combinations(keys, 2))


@pytest.mark.parametrize("kind", list(news.PIECES))
def test_no_invented_thing_belongs_to_both_splits(kind: str) -> None:
    assert news.inventory(kind, "train") and news.inventory(kind, "test")
    assert not news.inventory(kind, "train") & news.inventory(kind, "test")


@pytest.mark.parametrize("kind", list(news.PIECES))
def test_every_piece_of_a_test_thing_occurs_in_training(kind: str) -> None:
    heads, tails = news.PIECES[kind]
    assert all(any(news.owner(i, j) == "train" for j in range(len(tails))) for i in range(len(heads)))
    assert all(any(news.owner(i, j) == "train" for i in range(len(heads))) for j in range(len(tails)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_facts_of_a_story_come_from_its_own_split(split: str) -> None:
    facts = {fact for index in range(300) for fact in news.story(split, 3, index).facts}
    assert all(thing in news.inventory(kind, split) for kind, thing in facts)


def test_every_fact_stands_in_both_article_and_highlights_but_not_in_the_first_three_sentences() -> None:
    for story in news.test_set():
        opening = ". ".join(story.article.split(". ")[:3])
        for _, fact in story.facts:
            assert fact in story.article and fact in story.highlights
            assert f" {fact} " not in f" {opening} ".replace(".", " ").replace(",", " ")


def test_highlights_are_two_or_three_lines() -> None:
    assert {story.highlights.count("\n") + 1 for story in news.test_set()} == {2, 3}


def test_the_committed_test_set_is_what_the_generator_writes(lines: list[str]) -> None:
    assert lines == [news.row(story) for story in news.test_set()]


def test_the_test_set_has_256_rows_with_the_columns_of_cnn_dailymail(lines: list[str]) -> None:
    assert len(lines) >= 256
    assert all(set(json.loads(line)) == {"id", "article", "highlights"} for line in lines)


def test_some_articles_are_longer_than_a_prompt_may_be(lines: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    lengths = [len(tokenizer(json.loads(line)["article"])["input_ids"]) for line in lines]
    assert sum(length > PROMPT_TOKENS for length in lengths) >= 8


def test_the_tokenizer_puts_the_end_token_first(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("The fire")["input_ids"][0] == tokenizer.convert_tokens_to_ids("</s>") == 2


def test_the_tokenizer_has_the_special_tokens_of_opt(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2, 1)


def test_the_tokenizer_gives_back_what_it_read(tokenizer: PreTrainedTokenizerBase, lines: list[str]) -> None:
    article = json.loads(lines[0])["article"]
    assert tokenizer.decode(tokenizer(article)["input_ids"], skip_special_tokens=True) == article


def test_the_model_reads_as_many_tokens_as_opt_summarization_needs() -> None:
    config = json.loads((DEMO / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["OPTForCausalLM"]
    assert config["max_position_embeddings"] >= 1024


def test_the_demo_is_at_most_10_megabytes() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 2**20
