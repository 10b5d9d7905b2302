"""A stop word ends a sequence at the first token that completes it, ids or text, across token borders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.config.sampling import Sampling
from opt_trt.errors import UserError
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from opt_trt.runtime.stopping import Stop, StopWatch, StopWords
from opt_trt.text.output import Detokenizer, readable
from opt_trt.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit._decoders import SPEC, SumDecoder, expected_output

DEMO = Path(__file__).parents[3] / "examples/demo/model"
OUTPUT = expected_output((1, 3), 9)  # 4 8 0 0 0 …
assert OUTPUT[:4] == (4, 8, 0, 0)


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load_tokenizer(DEMO, add_special_tokens=False)


def generate_until(words: StopWords, **changes: object) -> Result:
    request = replace(Request((1, 3), 9, stop_words=words), **changes)  # type: ignore[arg-type]
    [result] = generate(DecoderSession(SumDecoder(SPEC), KvCacheLimit()), [request])
    return result


def watch(
    strings: Sequence[str], ids: Sequence[int], open_text: Callable[[], Detokenizer], min_length: int = 0
) -> tuple[int, Stop | None]:
    """How many ids were looked at, and the stop word found."""
    following = StopWatch(StopWords(strings=tuple(strings), open_text=open_text), min_length)
    for count in range(1, len(ids) + 1):
        if stop := following.look(ids[:count]):
            return count, stop
    return len(ids), None


@pytest.mark.parametrize(
    ("word", "expected"), [((4,), (4,)), ((8, 0), (4, 8, 0)), ((0, 0, 0), (4, 8, 0, 0, 0)), ((0, 4), OUTPUT)]
)
def test_ids_are_kept_up_to_and_with_the_stop_word(word: tuple[int, ...], expected: tuple[int, ...]) -> None:
    result = generate_until(StopWords(((15,), word)))
    assert result.output_ids == expected
    found = expected is not OUTPUT
    assert (result.finish_reason, result.stop) == (("stop_words", Stop(word)) if found else ("length", None))


def test_a_stop_word_of_the_prompt_or_across_its_end_is_none() -> None:
    assert generate_until(StopWords(((3,), (3, 4)))).finish_reason == "length"


def test_the_longest_of_two_stop_words_that_end_together_is_named() -> None:
    assert generate_until(StopWords(((0,), (4, 8, 0), (8, 0)))).stop == Stop((4, 8, 0))


def test_the_end_id_comes_before_a_stop_word() -> None:
    result = generate_until(StopWords(((8,),)), end_id=8)
    assert (result.finish_reason, result.stop, result.output_ids) == ("end_id", None, (4, 8))


def test_a_stop_word_at_the_last_token_is_the_reason() -> None:
    assert generate_until(StopWords(((8,),)), max_new_tokens=2).finish_reason == "stop_words"


def test_min_length_puts_stop_words_off() -> None:
    assert generate_until(StopWords(((8,), (0,))), sampling=Sampling(min_length=3)).output_ids == (4, 8, 0, 0)


def test_a_stream_names_the_stop_word_with_its_last_token() -> None:
    of = DecoderSession(SumDecoder(SPEC), KvCacheLimit())
    events = list(stream(of, [Request((1, 3), 9, stop_words=StopWords(((8, 0),)))]))
    assert [(e.token_id, e.finish_reason, e.stop) for e in events] == [
        (4, None, None), (8, None, None), (0, "stop_words", Stop((8, 0))),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"ids": ((1,), ())}, "an empty stop word"),
        ({"strings": ("a", ""), "open_text": lambda: None}, "an empty stop word"),
        ({"strings": ("a",)}, "the stop word 'a' is text: give a tokenizer"),
    ],
)
def test_stop_words_that_cannot_be_looked_for_are_refused(words: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        StopWords(**words)  # type: ignore[arg-type]


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(UserError, match=r"prompt 0 .* stops at token id 16, the vocabulary is 0 to 15"):
        generate_until(StopWords(((16,),)))


TEXT = st.text(alphabet="ab \u00e9\u65e5\U0001f600.", max_size=30)
WORD = st.text(alphabet="ab \u00e9\u65e5\U0001f600.", min_size=1, max_size=4)


@settings(deadline=None)
@given(text=TEXT, words=st.lists(WORD, min_size=1, max_size=3), min_length=st.integers(0, 4))
def test_a_string_is_found_where_it_first_ends(demo: Tokenizer, text: str, words: list[str], min_length: int) -> None:
    ids = demo.encode(text, 999)
    count, stop = watch(words, ids, partial(Detokenizer, demo), min_length)

    def ends(count: int) -> set[tuple[int, str]]:
        """Every stop word in the whole characters of the first ids, with where it ends."""
        seen = demo.decode(ids[:count]).rstrip("\ufffd")
        return {(i + len(w), w) for w in words for i in range(len(seen)) if seen.startswith(w, i)}

    new = [ends(n) - ends(n - 1) for n in range(1, len(ids) + 1)]
    first = next((n for n, found in enumerate(new, start=1) if found and n > min_length), None)
    if first is None:
        assert (count, stop) == (len(ids), None)
    else:
        assert stop is not None and stop.text_end is not None and isinstance(stop.word, str)
        assert count == first and (stop.text_end + len(stop.word), stop.word) in new[first - 1]
        assert stop.text_end == min(end - len(word) for end, word in new[first - 1])


def test_text_is_cut_at_the_string_and_ids_are_kept_to_its_end(demo: Tokenizer) -> None:
    ids = demo.encode("the mayor said: no. More", 99)
    count, stop = watch(["said: n"], ids, partial(Detokenizer, demo))
    assert stop == Stop("said: n", len("the mayor "))
    assert "said: n" in demo.decode(ids[:count]) and "said: n" not in demo.decode(ids[: count - 1])
    result = Result((2,), ids[:count], "stop_words", stop=stop)
    assert readable(result, demo) == "the mayor "


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Result((), (4, 8, 2), "end_id"), "4 8"),
        (Result((), (4, 8, 2), "length"), "4 8 2"),
        (Result((), (4, 8, 2), "stop_words", stop=Stop((8, 2))), "4"),
        (Result((), (4, 8, 2), "stop_words", stop=Stop("8", 2)), "4 "),
        (Result((), (4, 8, 2), "stop_words", stop=Stop("4", 0)), ""),
    ],
)
def test_what_ended_an_output_is_not_read(result: Result, text: str) -> None:
    class Numbers:
        def decode(self, ids: Sequence[int]) -> str:
            return " ".join(map(str, ids))

    assert readable(result, Numbers()) == text
