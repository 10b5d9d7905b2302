"""Turn a configuration dataclass into a command: parse its flags, run it, map errors to exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from opt_trt.cli.parser import build_parser
from opt_trt.errors import (
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNREAD,
    EXIT_USER_ERROR,
    LEADER_FIRST_SECONDS,
    CheckFailed,
    UserError,
    one_line,
)
from opt_trt.host.extras import is_needed, missing_package
from opt_trt.runtime.world import World, current_world

Config = TypeVar("Config")

FORWARDED_SECONDS = 0.2  # a launcher forwards two streams by different ways: what was printed first may arrive last


class Terminated(BaseException):
    """A signal that asks to end: it unwinds like Ctrl-C, so that half-written directories are removed."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number


def parse(config_class: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Return the configuration that a command line asks for; `UserError` names what does not fit."""
    values = vars(build_parser(config_class).parse(sys.argv[1:] if argv is None else argv))
    return config_class(**{name: _as_tuples(value) for name, value in values.items()})


def run_main(main: Callable[[Config], None], config_class: type[Config], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a script and exit: 0 done, 1 a check failed, 2 the user can fix it, 130 interrupted, 141 output not read.

    Of several ranks, the leader prints. Another rank prints an error only if the leader has not ended it by then.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):  # the second comes when a terminal is closed
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _raise_terminated)
    _open_missing_streams()
    world, config = current_world(os.environ), None
    if not (world.is_leader or world.is_claimed):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    _escape_what_cannot_be_shown()
    try:
        _check_current_directory()
        config = parse(config_class, argv)
        main(config)
        print(end="", flush=True)
    except (UserError, CheckFailed) as error:
        code = EXIT_CHECK_FAILED if isinstance(error, CheckFailed) else EXIT_USER_ERROR
        _exit(code, _error_text(str(error), config, world), world.size)
    except (KeyboardInterrupt, Terminated) as stop:
        code = EXIT_INTERRUPTED if isinstance(stop, KeyboardInterrupt) else 128 + stop.number
        # The launcher ends all of several ranks, and the reason has been printed already.
        _exit(code, "interrupted; nothing half-written was left\n" * (world.size == 1))
    except ModuleNotFoundError as error:
        if not is_needed(error):
            raise
        _exit(EXIT_USER_ERROR, _error_text(str(missing_package(error)), config, world), world.size)
    except BrokenPipeError:
        _exit(EXIT_UNREAD)
    except OSError as error:
        _exit(EXIT_USER_ERROR, _error_text(_os_error(error), config, world))
    sys.exit(0)


def _exit(code: int, message: str = "", num_ranks: int = 1) -> NoReturn:
    """Print the message behind all output, and exit.

    What cannot be written is dropped: Python would exit with another code for it.
    """
    for stream, text in ((sys.stdout, ""), (sys.stderr, message)):
        try:
            print(text, end="", file=stream, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if num_ranks > 1:
            time.sleep(FORWARDED_SECONDS)
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


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _error_text(text: str, config: object, world: World) -> str:
    """Return the lines to print for an error; on a following rank, first give the leader time to print them for all."""
    if not (world.is_leader or world.is_claimed):
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
    raise Terminated(signum)


def _os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    advice = "give access to it" if isinstance(error, PermissionError) else "free space or fix the path"
    return f"{error.strerror or error}{where}; {advice}, then run the command again"
