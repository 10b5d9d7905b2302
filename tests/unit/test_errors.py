"""Errors name options, which every interface spells in its own way; what users gave is never taken for an option."""

from __future__ import annotations

import pickle

import pytest

from opt_trt.api.wording import in_python
from opt_trt.errors import MESSAGE_LIMIT, UserError, one_line, reason, spelled
from opt_trt.runtime.request import RequestFailed

TEXT = f"/data/{{dtype}}/--dtype is too long; lower {spelled('max_output_len')} or {spelled('top_k')}"


def test_options_are_flags_on_the_command_line() -> None:
    assert str(UserError(TEXT)) == "/data/{dtype}/--dtype is too long; lower --max_output_len or --top_k"


def test_options_are_keywords_in_python_and_data_stays_as_it_is() -> None:
    with pytest.raises(UserError) as error, in_python():
        raise UserError(TEXT)
    assert str(error.value) == "/data/{dtype}/--dtype is too long; lower max_tokens or top_k"


def test_a_block_has_names_of_its_own() -> None:
    with pytest.raises(UserError, match="lower max_new_tokens or top_k"), in_python(max_output_len="max_new_tokens"):
        raise UserError(TEXT)


def test_an_error_in_another_ones_text_still_names_options() -> None:
    with pytest.raises(UserError, match=r"^prompt 3 \(.*lower max_tokens or top_k\)$"), in_python():
        raise RequestFailed(3, f"({UserError(TEXT).text})")


def test_an_error_that_comes_from_another_process_still_names_options() -> None:
    assert pickle.loads(pickle.dumps(UserError(TEXT))).render(str.upper).endswith("lower MAX_OUTPUT_LEN or TOP_K")


def test_a_message_is_one_bounded_line_without_control_characters() -> None:
    name = "\x1b]0;owned\x07\x1b[2J\n::error::injected\u202e\r\0"
    shown = str(UserError(f"x.safetensors: {name} is odd; {spelled('dtype')}"))
    assert shown == (r"x.safetensors: \x1b]0;owned\x07\x1b[2J\n::error::injected\u202e\r\x00 is odd; --dtype")
    long = str(UserError("begins " + "\x1b" * 1_000_000 + " ends"))
    assert 1900 < len(long) <= MESSAGE_LIMIT and long.startswith("begins ") and long.endswith(" ends")
    assert one_line(long) == long and one_line("Größe 漢字 \\n") == "Größe 漢字 \\n"


def test_what_another_library_says_is_quoted_on_one_line() -> None:
    assert reason(ValueError("a\n   b\r\nc")) == "a b c" and reason(StopIteration()) == "StopIteration"
    assert reason(EOFError()) == "it ends too soon" and reason(MemoryError()) == "it does not fit into memory"
    assert reason(KeyError("data/0")) == "it lacks 'data/0'"
    assert len(reason(ValueError("x" * 10_000))) == 300
