"""The pieces of a stream join to the whole text, and stop words are found, with every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.runtime.request import Result
from opt_trt.runtime.stopping import StopWatch
from opt_trt.text.output import Detokenizer, OutputText, readable
from opt_trt.text.tokenizer import Tokenizer, load_tokenizer
from opt_trt.text.words import stop_words
from tests.unit._tokenizers import KINDS, fast_tokenizer

DEMO = Path(__file__).parents[3] / "examples/demo/model"


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "bytes":
        return load_tokenizer(DEMO)
    with TemporaryDirectory() as directory:
        return load_tokenizer(fast_tokenizer(Path(directory), kind))


@cache
def vocabulary(kind: str) -> int:
    return 2560 if kind == "bytes" else 3 + len(KINDS[kind][0])


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Tokenizer, list[int]]:
    kind = draw(st.sampled_from(["bytes", *KINDS]))
    ids = draw(st.lists(st.integers(0, vocabulary(kind)), max_size=40))  # the largest is beyond the vocabulary
    shown = tokenizer(kind) if draw(st.booleans()) else tokenizer(kind).verbatim()
    return shown, ids


def parts(ids: list[int], size: int) -> Iterator[list[int]]:
    return (ids[i : i + size] for i in range(0, len(ids), size))


@settings(deadline=None, max_examples=300)
@given(output=outputs(), size=st.integers(1, 4))
def test_pieces_join_to_the_text_and_what_is_pending_completes_it(
    output: tuple[Tokenizer, list[int]], size: int
) -> None:
    shown, ids = output
    stream, text, count = Detokenizer(shown), "", 0
    for part in parts(ids, size):
        text, count = text + stream.push(part), count + len(part)
        assert text + stream.pending == shown.decode(ids[:count])
    assert text + stream.flush() == shown.decode(ids)


@settings(deadline=None, max_examples=300)
@given(output=outputs(), data=st.data())
def test_a_stream_ends_where_the_text_first_has_a_stop_word(
    output: tuple[Tokenizer, list[int]], data: st.DataObject
) -> None:
    shown, ids = output
    whole = shown.decode(ids).replace("\ufffd", "") + " ."
    start = data.draw(st.integers(0, len(whole) - 1))
    words = [whole[start : start + data.draw(st.integers(1, 4))], data.draw(st.sampled_from([" ", "on", "</"]))]
    request = stop_words(words, shown)
    assert request is not None
    watch, text, pieces = StopWatch(request, 0), OutputText(shown, request), ""
    for count in range(1, len(ids) + 1):
        stop = watch.look(ids[:count], is_last=count == len(ids))
        seen = shown.decode(ids[:count]).rstrip("\ufffd")
        assert (stop is not None) == any(word in seen for word in words)
        if stop is not None:
            assert stop.text_end == min(seen.find(word) for word in words if word in seen)
            pieces += text.finish(ids[count - 1 : count], stop)
            assert pieces == readable(Result((2,), tuple(ids[:count]), "stop_words", stop=stop), shown)
            return
        pieces += text.push(ids[count - 1 : count])
    assert pieces + text.finish([], None) == shown.decode(ids)


def test_a_stop_word_is_found_where_text_changes_and_does_not_grow() -> None:
    """Two spaces, and a point that takes one of them away."""
    shown = tokenizer("edited as a whole")
    request = stop_words([" ."], shown)
    assert request is not None
    watch, ids = StopWatch(request, 0), shown.of_transformers.convert_tokens_to_ids(["▁▁", "."])
    assert [shown.decode(ids[:1]), shown.decode(ids)] == ["  ", " ."]
    assert watch.look(ids[:1]) is None and watch.look(ids) is not None
