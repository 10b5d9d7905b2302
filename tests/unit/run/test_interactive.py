"""run.py --interactive: a line in, its continuation out, until the input ends."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from opt_trt.cli import parse
from opt_trt.config.run_flags import RunConfig
from opt_trt.errors import UserError
from opt_trt.run import interactive
from opt_trt.run.run import run
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import StepInputs, StepOutputs
from tests.unit._decoders import SumDecoder, spec
from tests.unit._tokenizers import VOCAB_SIZE, write_tokenizer

SPEC = spec(vocab_size=VOCAB_SIZE)


@dataclass
class NextLetter(SumDecoder):
    """After `a` comes `b`, after `b` comes `c`, …"""

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        outputs = super().step(inputs, kv_cache)
        following = (inputs.input_ids[inputs.last_token_ids] + 1) % self.spec.vocab_size
        return replace(outputs, logits=torch.nn.functional.one_hot(following, self.spec.vocab_size).float())


Talk = Callable[..., tuple[str, str]]


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """What appears on the two streams when lines are typed in."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer")

    def start(lines: str, *flags: str, decoder: SumDecoder | None = None) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        shared = ["--interactive", "--max_output_len", "3", "--tokenizer_dir", str(tokenizer)]
        config = parse(RunConfig, [*shared, *flags])
        run(config, lambda engine_dir, *how: DecoderSession(decoder or NextLetter(SPEC), *how[:2]))
        captured = capsys.readouterr()
        return captured.out, captured.err

    return start


def test_every_line_is_continued(talk: Talk) -> None:
    assert talk("ab\nx\n") == ("cde\nyz{\n", "")


def test_a_closed_standard_input_is_named(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "StringIO", lambda lines: None)
    with pytest.raises(UserError, match="prompts from standard input, which is closed; give --input_text"):
        talk("")


def test_the_last_line_may_lack_its_break(talk: Talk) -> None:
    assert talk("ab")[0] == "cde\n"


def test_no_lines_no_output(talk: Talk) -> None:
    assert talk("") == ("", "")


def test_flags_of_generation_act(talk: Talk) -> None:
    assert talk("ab\nx\n", "--stop_words", "de", "--streaming_interval", "1")[0] == "c\nyz{\n"
    drawn = talk("ab\n", "--top_k", "0", "--top_p", "1.0", "--num_return_sequences", "2")[0]
    assert drawn.count("\n") == 2


def test_a_prompt_that_cannot_be_served_is_named_and_the_next_is_asked(talk: Talk) -> None:
    out, err = talk("a" * 30 + "\nb\n", "--max_input_length", "30")
    cut, refused = err.splitlines()
    assert out == "cde\n" and refused.startswith("error: prompt 0 has 30 tokens")
    assert cut == "prompt 0: 31 tokens, the last 30 are used (--max_input_length)"


def test_input_that_is_no_text_is_named(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "StringIO", lambda text: io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input are not UTF-8"):
        talk("")


def test_ctrl_c_ends_an_answer_and_not_the_conversation(talk: Talk) -> None:
    decoder = NextLetter(SPEC)

    def interrupt_once(inputs: StepInputs) -> None:
        if len(decoder.steps) == 1:
            decoder.steps.append(inputs)
            raise KeyboardInterrupt

    decoder.before_step = interrupt_once
    assert talk("ab\nx\n", decoder=decoder)[0] == "\nyz{\n"


def test_at_a_terminal_it_is_told_how_to_end_and_an_empty_line_is_no_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["ab", "", "x"])

    def line(cue: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)
    assert list(interactive._typed_lines()) == ["ab", "x"]
    assert capsys.readouterr().out.startswith("Each line is a prompt. Ctrl-C ends an answer, Ctrl-D ends the command.")


def test_ctrl_c_at_the_cue_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    def interrupt(cue: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Keyboard())
    monkeypatch.setattr("builtins.input", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(interactive._lines())


@pytest.mark.parametrize(
    "flags", [("--input_text", "a"), ("--input_file", "p.txt"), ("--output_csv", "o.csv"), ("--run_profiling",)]
)
def test_what_needs_all_prompts_at_once_is_refused(talk: Talk, flags: Sequence[str]) -> None:
    with pytest.raises(UserError, match="--interactive asks for prompts and prints outputs; drop it or "):
        talk("", *flags)
