"""Turn a configuration dataclass into a command: parse its flags, run it, map errors to exit codes."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
import traceback
import typing
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn, TypeVar

from opt_trt.config.flags import Flag, Refusal
from opt_trt.errors import (
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_UNREAD,
    EXIT_USER_ERROR,
    LEADER_FIRST_SECONDS,
    CheckFailed,
    UserError,
    one_line,
)
from opt_trt.runtime.world import World, current_world

Config = TypeVar("Config")


class Terminated(BaseException):
    """The arrival of SIGTERM: it unwinds like Ctrl-C, so that half-written directories are removed."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s and which takes no abbreviations."""

    def __init__(self, config_class: type) -> None:
        super().__init__(
            prog=_program(),
            description=(config_class.__doc__ or "").strip(),
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage and exiting."""
        raise UserError(f"{message}; {self.prog} --help lists the flags")

    def print_help(self, file: Any = None) -> None:
        """Print at once, and raise where argparse passes over what cannot be written."""
        print(self.format_help(), end="", file=file, flush=True)


class Groups(dict[str | None, argparse._ActionsContainer]):
    """The groups that flags are added to, by their heading in the help; without a heading, the parser itself."""

    def __init__(self, parser: Parser) -> None:
        super().__init__({None: parser})

    def __missing__(self, heading: str | None) -> argparse._ActionsContainer:
        parser = self[None]
        assert isinstance(parser, Parser)
        self[heading] = group = parser.add_argument_group(heading)
        return group


def build_parser(config_class: type) -> Parser:
    """Return the parser of a configuration: one argument per flag field, one refusal per flag that cannot act."""
    parser = Parser(config_class)
    hints = typing.get_type_hints(config_class)
    groups = Groups(parser)
    for f in fields(config_class):
        if "flag" in f.metadata:
            _add_flag(groups[f.metadata["flag"].group], f, hints[f.name])
    for name, refusal in getattr(config_class, "REFUSED", {}).items():
        parser.add_argument(
            f"--{name}", nargs="*", action=_RefuseAction, refusal=refusal, default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )  # fmt: skip
    return parser


def parse(config_class: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Return the configuration that a command line asks for; `UserError` names what does not fit."""
    values = vars(build_parser(config_class).parse_intermixed_args(argv))
    return config_class(**{name: _as_tuples(value) for name, value in values.items()})


def run_main(main: Callable[[Config], None], config_class: type[Config], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a script and exit: 0 done, 1 a check failed, 2 the user can fix it, 130 interrupted, 141 output not read.

    Of several ranks, the leader prints. Another rank prints an error only if the leader has not ended it by then.
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    _open_missing_streams()
    world, config = current_world(os.environ), None
    if not world.is_leader:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    _escape_what_cannot_be_shown()
    try:
        _check_current_directory()
        config = parse(config_class, argv)
        main(config)
        print(end="", flush=True)
    except (UserError, CheckFailed) as error:
        code = EXIT_CHECK_FAILED if isinstance(error, CheckFailed) else EXIT_USER_ERROR
        _exit(code, _error_text(str(error), config, world))
    except (KeyboardInterrupt, Terminated) as stop:
        code = EXIT_INTERRUPTED if isinstance(stop, KeyboardInterrupt) else EXIT_TERMINATED
        # The launcher ends all of several ranks, and the reason has been printed already.
        _exit(code, "interrupted; nothing half-written was left\n" * (world.size == 1))
    except BrokenPipeError:
        _exit(EXIT_UNREAD)
    except OSError as error:
        _exit(EXIT_USER_ERROR, _error_text(_os_error(error), config, world))
    sys.exit(0)


def _exit(code: int, message: str = "") -> NoReturn:
    """Print the message and exit. What cannot be written is dropped: Python would exit with another code for it."""
    for stream, text in ((sys.stderr, message), (sys.stdout, "")):
        try:
            if stream is not None:  # it is None if the command was started without this stream
                print(text, end="", file=stream, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _open_missing_streams() -> None:
    """Drop what is written to a stream without which the command was started (`2>&-`): libraries expect a file."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the process ends


def _check_current_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError(
            "the current directory has been deleted; change to another one, and run the command again"
        ) from None


def _escape_what_cannot_be_shown() -> None:
    """Print a character that a terminal's encoding lacks as `\\u2019`: a traceback would lose the whole output."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _program() -> str | None:
    """Return what the user typed, `python -m opt_trt describe`, if argparse would print `__main__.py` instead."""
    spec = sys.modules["__main__"].__spec__
    if spec is None or not spec.name.endswith(".__main__"):
        return None
    package = spec.name.removesuffix(".__main__")
    command = sys.argv[1:2] if package == __package__ else []
    return " ".join(("python -m", package, *command))


def _add_flag(parser: argparse._ActionsContainer, f: Field[Any], hint: Any) -> None:
    flag: Flag = f.metadata["flag"]
    names = [f"--{name}" for name in (f.name, *flag.aliases)]
    if hint is bool:
        parser.add_argument(*names, dest=f.name, action="store_true", default=f.default, help=flag.help)
        return
    how: dict[str, Any] = {"type": _value_type(hint), "choices": flag.choices, "help": flag.help}
    if how["type"] is int and flag.choices:
        how["choices"] = tuple(int(c) for c in flag.choices)
    if flag.nargs:
        how["nargs"] = flag.nargs
    if flag.repeats:
        how["action"] = "append"
    if flag.bare:
        how |= {"nargs": "?", "const": flag.bare}
    if flag.positional:  # without it, the field keeps its default, which need not be shown
        parser.add_argument(f.name, metavar=flag.positional, default=argparse.SUPPRESS, **how)
        return
    parser.add_argument(*names, dest=f.name, default=f.default, **how)


def _value_type(hint: Any) -> type:
    """Return the type one value is parsed as: `int | None` → int, `tuple[tuple[str, ...], ...]` → str."""
    while args := typing.get_args(hint):
        hint = next(a for a in args if a is not type(None))
    assert isinstance(hint, type), hint
    return hint


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


class _RefuseAction(argparse.Action):
    """An action that accepts a refused flag only with a value that asks for what happens anyway."""

    def __init__(self, *args: Any, refusal: Refusal, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refusal = refusal

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        assert option is not None
        self.refusal.check(option, " ".join(values))


def _error_text(text: str, config: object, world: World) -> str:
    """Return the lines to print for an error; on a following rank, first give the leader time to print them for all."""
    if not world.is_leader:
        time.sleep(LEADER_FIRST_SECONDS)
        sys.stderr = sys.__stderr__
        return f"error: rank {world.rank}: {one_line(text)}\n"
    trace = _trace() if getattr(config, "log_level", None) == "verbose" else ""
    return f"{trace}error: {one_line(text)}\n"


def _trace() -> str:
    """Return the stacks of the error in flight and of its causes; what they say is escaped as every message is."""
    lines: list[str] = []
    error = sys.exc_info()[1]
    while error is not None:
        said = f"{type(error).__name__}: {one_line(str(error))}\n"
        lines = ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__), said, *lines]
        error = error.__cause__ or error.__context__
    return "".join(lines)


def _raise_terminated(signum: int, frame: object) -> None:
    raise Terminated


def _os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    advice = "give access to it" if isinstance(error, PermissionError) else "free space or fix the path"
    return f"{error.strerror or error}{where}; {advice}, then run the command again"
