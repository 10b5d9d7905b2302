"""Words of text become what ends an output and what is banned from it: with special tokens, spaces, and odd ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from opt_trt.errors import UserError
from opt_trt.runtime.request import Result
from opt_trt.runtime.stopping import Stop, StopWatch
from opt_trt.text.output import OutputText, readable
from opt_trt.text.tokenizer import Tokenizer, load_tokenizer
from opt_trt.text.words import banned_ids, banned_with_and_without_space, stop_words
from tests.unit._tokenizers import SPACE, VOCAB_SIZE, fast_tokenizer, ids_of, write_tokenizer

PAD, END = 1, 2
A = VOCAB_SIZE - 1  # " a"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(fast_tokenizer(tmp_path_factory.mktemp("metaspace"), "metaspace"))


def ended(words: Sequence[str], ids: Sequence[int], shown: Tokenizer) -> tuple[int, Stop | None, str, str]:
    """Return how many ids were looked at, the stop word, the text, and the text as a stream has it."""
    request = stop_words(words, shown)
    assert request is not None
    watch, stream, streamed = StopWatch(request, 0), OutputText(shown, request), ""
    for count in range(1, len(ids) + 1):
        stop = watch.look(ids[:count])
        if stop is not None:
            text = readable(Result((2,), tuple(ids[:count]), "stop_words", stop=stop), shown)
            return count, stop, text, streamed + stream.finish(ids[count - 1 : count], stop)
        streamed += stream.push(ids[count - 1 : count])
    return len(ids), None, shown.decode(ids), streamed + stream.finish([], None)


@pytest.mark.parametrize(
    ("words", "ids", "expected"),
    [
        (["<pad>"], [PAD, PAD], (1, Stop("<pad>", 0), "")),
        (["x", "<pad>"], [*ids_of("ab"), PAD, PAD], (3, Stop("<pad>", 2), "ab")),
        (["b<pad>"], [*ids_of("aab"), PAD], (4, Stop("b<pad>", 2), "aa")),
        (["<pad>b"], [*ids_of("a"), PAD, *ids_of("cb"), PAD, *ids_of("b")], (6, Stop("<pad>b", 3), "acb")),
        (["b</s><pad>"], [*ids_of("abb"), END, PAD], (5, Stop("b</s><pad>", 2), "ab")),
        (["<pad>"], ids_of("a<pad>b"), (6, Stop("<pad>", 1), "a")),  # the same letters, typed out
        (["<pad>", "b"], [*ids_of("ab"), PAD], (2, Stop("b", 1), "a")),
        (["</s>"], [*ids_of("ab"), PAD], (3, None, "ab")),
    ],
)
def test_a_stop_word_may_name_special_tokens_that_are_not_shown(
    tokenizer: Tokenizer, words: list[str], ids: Sequence[int], expected: tuple[int, Stop | None, str]
) -> None:
    assert ended(words, ids, tokenizer) == (*expected, expected[2])


def test_special_tokens_that_are_shown_are_text(tokenizer: Tokenizer) -> None:
    shown = tokenizer.verbatim()
    assert ended(["d>b"], [*ids_of("a"), PAD, *ids_of("b")], shown) == (3, Stop("d>b", 4), "a<pa", "a<pa")
    assert ended(["<pad>"], [END, PAD], shown) == (2, Stop("<pad>", 4), "</s>", "</s>")


def test_text_behind_which_a_special_token_may_end_the_output_waits(tokenizer: Tokenizer) -> None:
    text = OutputText(tokenizer, stop_words(["ab<pad>"], tokenizer))
    assert [text.push(ids_of(letter)) for letter in "cabdab"] == ["c", "", "", "abd", "", ""]
    assert text.finish([PAD], Stop("ab<pad>", 4)) == ""


def test_a_special_token_of_another_kind_of_tokenizer_ends_too(metaspace: Tokenizer) -> None:
    one, two = metaspace.encode_word("one")[0], metaspace.encode_word("two")[0]
    assert ended(["</s>"], [one, two, END], metaspace) == (3, Stop("</s>", 7), "one two", "one two")
    assert ended([" two"], [one, two], metaspace) == (2, Stop(" two", 3), "one", "one")


def test_only_spellings_that_have_the_word_are_given_to_engines(tokenizer: Tokenizer, metaspace: Tokenizer) -> None:
    request = stop_words(["on", "one", "</s>"], metaspace)  # "on" is unknown to it
    assert request is not None
    assert request.spellings == (metaspace.encode_word("one"), (END,))
    assert stop_words(["ab"], tokenizer, [(5,)]).spellings == (ids_of("ab"),)  # type: ignore[union-attr]


def test_half_a_character_is_no_stop_word_until_the_output_ends(tokenizer: Tokenizer) -> None:
    request = stop_words(["\ufffd"], tokenizer)
    assert request is not None
    half = tokenizer.encode_word("\u00e9")[:1]
    assert StopWatch(request, 0).look(half) is None
    assert StopWatch(request, 0).look(half, is_last=True) == Stop("\ufffd", 0)


def test_a_byte_is_found_when_it_comes_and_not_when_its_run_ends(tmp_path: Path) -> None:
    bytewise = load_tokenizer(fast_tokenizer(tmp_path, "byte fallback"))
    [letter] = [i for i in range(99) if bytewise.decode((i,)) == "A"]
    [one] = bytewise.encode_word("one")
    assert ended(["A"], [one, letter, one], bytewise) == (2, Stop("A", 3), "one", "one")


def test_bad_words_are_banned_with_and_without_their_space(tokenizer: Tokenizer, metaspace: Tokenizer) -> None:
    [space] = tokenizer.encode_word(" ")
    assert tokenizer.decode((space,)) == " " and SPACE != " "
    b, spaced_b = ids_of("b"), (space, *ids_of("b"))
    assert banned_with_and_without_space(["b"], tokenizer) == (b, spaced_b)
    assert banned_with_and_without_space([" b"], tokenizer) == (spaced_b, b)
    assert banned_with_and_without_space(["a", "  a"], tokenizer) == (ids_of("a"), (A,), (space, A))
    assert banned_with_and_without_space([" "], tokenizer) == ((space,),)
    assert banned_with_and_without_space(["one"], metaspace) == (metaspace.encode_word("one"),)


def test_bad_words_of_the_command_are_banned_as_written(tokenizer: Tokenizer) -> None:
    assert banned_ids([" a", "b"], tokenizer) == ((A,), ids_of("b"))


def test_an_empty_bad_word_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="bad_words has a word without tokens"):
        banned_with_and_without_space(["b", ""], tokenizer)
