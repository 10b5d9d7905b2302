"""Prompts from the keyboard, one per line; each answer is printed as it is generated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from opt_trt.config.run_flags import RunConfig
from opt_trt.errors import UserError
from opt_trt.run.console import Printing, StreamPrinter
from opt_trt.run.requests import make_requests
from opt_trt.runtime.in_flight import stream
from opt_trt.runtime.session import Session
from opt_trt.runtime.world import World
from opt_trt.runtime.world.standard_input import input_ends
from opt_trt.text.tokenizer import Tokenizer

CUE = "> "
HINT = "Each line is a prompt. Ctrl-C ends an answer, Ctrl-D ends the command."


def check_input(world: World) -> None:
    """Raise `UserError` if there are no prompts to read, or their end cannot be noticed and the command would wait."""
    if sys.stdin is None:
        raise UserError("--interactive reads prompts from standard input, which is closed; give --input_text")
    if not input_ends(world):
        raise UserError(
            "--interactive: mpirun does not pass on that prompts from a pipe or a file have ended, so it would wait "
            "for ever; give them with --input_file, or type them at a terminal"
        )


def converse(config: RunConfig, session: Session, tokenizer: Tokenizer) -> None:
    """Continue every line of standard input. A prompt that cannot be served is reported, and the next one is read.

    Ctrl-C ends the current answer; at the cue it ends the command.
    """
    printing = Printing(tokenizer, config.num_draws, config.streaming_interval, framed=False)
    for line in _lines():
        try:
            requests = make_requests(replace(config, input_text=(line,), interactive=False), session.spec, tokenizer)
            printer = StreamPrinter(requests, printing)
            for event in stream(session, requests):
                printer.add(event)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(flush=True)


def _lines() -> Iterator[str]:
    try:
        if sys.stdin.isatty():
            yield from _typed_lines()
        else:
            yield from (line.removesuffix("\n") for line in sys.stdin)
    except UnicodeDecodeError as error:
        raise UserError(f"prompts on standard input are not UTF-8 text ({error}); save them as UTF-8") from None


def _typed_lines() -> Iterator[str]:
    import readline  # noqa: F401  arrow keys and history for input(), where there is a keyboard

    print(HINT)
    while True:
        try:
            line = input(CUE)
        except EOFError:
            print()
            return
        if line:
            yield line
