"""Text becomes the ids OPT was trained on, and ids become text that is never half a character."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.errors import UserError
from opt_trt.runtime.stopping import Stop, StopWords
from opt_trt.text.output import Detokenizer, OutputText
from opt_trt.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit._tokenizers import VOCAB_SIZE, ids_of, write_tokenizer

DEMO = Path(__file__).parents[3] / "examples/demo/model"
SPACE_A = VOCAB_SIZE - 1


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load_tokenizer(DEMO, add_special_tokens=False)


def test_a_prompt_begins_with_the_end_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("b a", 9) == (2, *ids_of("b"), SPACE_A)


@pytest.mark.parametrize("text", ["", "b a", " a", "two words", "caf\u00e9 \u65e5\u672c", "a</s>b", "x\n\ny"])
def test_ids_are_those_of_transformers(directory: Path, tokenizer: Tokenizer, text: str) -> None:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(directory, local_files_only=True, truncation_side="left")
    for length in (100, 3, 2, 1):
        assert list(tokenizer.encode(text, length)) == oracle(text, truncation=True, max_length=length).input_ids


def test_a_long_text_is_cut_from_the_left_behind_the_prefix(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("abcdef", 3) == (2, *ids_of("ef"))


def test_no_special_tokens_leaves_the_text_alone(directory: Path) -> None:
    plain = load_tokenizer(directory, add_special_tokens=False)
    assert (plain.encode("abc", 9), plain.encode("abc", 2)) == (ids_of("abc"), ids_of("bc"))


def test_a_tokenizer_published_without_add_bos_token_gets_its_prefix(tmp_path: Path) -> None:
    assert load_tokenizer(write_tokenizer(tmp_path, add_bos_token=None)).encode("b", 9) == (2, *ids_of("b"))


def test_a_tokenizer_that_says_no_prefix_gets_none(tmp_path: Path) -> None:
    assert load_tokenizer(write_tokenizer(tmp_path, add_bos_token=False)).encode("b", 9) == ids_of("b")


def test_a_saved_fast_tokenizer_reads_the_same(directory: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(directory, local_files_only=True).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").unlink(missing_ok=True)
    assert load_tokenizer(tmp_path).encode("b a", 9) == (2, *ids_of("b"), SPACE_A)


def test_special_ids_are_opts(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 2, 1)


def test_special_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode((2, *ids_of("ab"), 1, 2)) == "ab"


def test_rows_beyond_the_vocabulary_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode((*ids_of("a"), VOCAB_SIZE, VOCAB_SIZE + 7, *ids_of("b"))) == "ab"


@pytest.mark.parametrize("text", ["a , b .", " a", "it 's n't", "x  y"])
def test_decoding_gives_the_text_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, 99)) == text


def test_special_tokens_are_shown_verbatim(tokenizer: Tokenizer) -> None:
    assert tokenizer.verbatim().decode((2, *ids_of("ab"), 1)) == "</s>ab<pad>"
    assert tokenizer.verbatim().encode("b", 9) == tokenizer.encode("b", 9)


def test_what_may_begin_a_stop_word_is_held_back_until_it_does_not(tokenizer: Tokenizer) -> None:
    words = StopWords(strings=("xyz", "q"), open_text=lambda: Detokenizer(tokenizer))
    text = OutputText(tokenizer, words)
    assert [text.push(ids_of(piece)) for piece in ("a", "bxy", "w", "x", "xy")] == ["a", "b", "xyw", "", "x"]
    assert text.finish(ids_of("z"), Stop("xyz", text_end=6)) == ""


def test_without_stop_words_nothing_is_held_back(tokenizer: Tokenizer) -> None:
    text = OutputText(tokenizer, None)
    assert (text.push(ids_of("ab")), text.finish(ids_of("c"), None)) == ("ab", "c")


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode("\u00e9", 9)[1:]
    stream = Detokenizer(tokenizer)
    assert (stream.push([first]), stream.push([second]), stream.flush()) == ("", "\u00e9", "")


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer: Tokenizer) -> None:
    stream = Detokenizer(tokenizer)
    assert (stream.push(tokenizer.encode("a\u00e9", 9)[1:-1]), stream.flush()) == ("a", "\ufffd")


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, VOCAB_SIZE + 3)), size=st.integers(1, 4))
def test_pieces_of_a_stream_join_to_the_text(tokenizer: Tokenizer, ids: list[int], size: int) -> None:
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


@settings(deadline=None)
@given(text=st.text(alphabet="a\u00e9\u65e5\U0001f600 "))
def test_a_stream_of_whole_text_never_shows_a_replacement(tokenizer: Tokenizer, text: str) -> None:
    stream = Detokenizer(tokenizer)
    pieces = [stream.push([i]) for i in tokenizer.encode(text, 999)[1:]]
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_a_stream_of_the_demo_tokenizer_never_shows_half_a_character(demo: Tokenizer, text: str) -> None:
    stream = Detokenizer(demo)
    ids = demo.encode(text, 999)
    pieces = [stream.push([i]) for i in ids]
    whole = demo.decode(ids)
    assert "".join(pieces) + stream.flush() == whole
    shown = 0
    for piece in pieces:
        assert whole.startswith(piece, shown)
        shown += len(piece)


def test_bytes_that_never_become_a_character_do_not_hold_the_text_back(tokenizer: Tokenizer) -> None:
    [lead, follow] = tokenizer.encode("\u00e9", 9)[1:]
    stream = Detokenizer(tokenizer)
    pieces = [stream.push([i]) for i in (follow, follow, lead, lead, follow, *ids_of("a"))]
    assert pieces == ["", "\ufffd", "\ufffd", "\ufffd", "\u00e9", "a"]


def test_many_ids_at_once_hold_back_the_last_character_only(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\u65e5\U0001f600", 99)[1:]
    stream = Detokenizer(tokenizer)
    assert (stream.push(ids[:-1]), stream.push(ids[-1:])) == ("a\u65e5", "\U0001f600")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a tokenizer in .*nowhere.*--tokenizer_dir"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    (write_tokenizer(tmp_path) / name).unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer: expected vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    (write_tokenizer(tmp_path) / name).write_text('{"half": ')
    with pytest.raises(UserError, match=f"the tokenizer in {tmp_path} cannot be read"):
        load_tokenizer(tmp_path)


def test_without_a_begin_token_prompts_of_text_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, bos_token=None, tokenizer_class="PreTrainedTokenizerFast")
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import BPE

    Fast(BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=f"the tokenizer in {tmp_path} names no bos_token .*--no_add_special_tokens"):
        tokenizer.encode("a", 9)
    assert (tokenizer.encode_whole("a", add_special_tokens=False), tokenizer.decode((0, 0))) == ((0,), "a a")


def test_code_of_the_directory_is_not_run(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()
