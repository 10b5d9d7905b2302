"""The errors that users can fix, the checks that raise them, and the exit codes of commands."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

EXIT_CHECK_FAILED = 1
EXIT_BUG = 1  # Python's own code for an exception that nothing catches
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_UNREAD = 128 + signal.SIGPIPE  # shells report this code for a command if its output is no longer read
EXIT_TERMINATED = 128 + signal.SIGTERM

# When all ranks fail, the leader prints why. The other ranks wait this long, so that its message comes first.
LEADER_FIRST_SECONDS = 3.0

# An option in a message stands between two NUL characters, which no path, argument or environment variable can contain.
SPELLED = re.compile(r"\0(\w+)\0")

MESSAGE_LIMIT = 2000  # characters; a message begins with what is wrong and ends with what to do, so its middle is cut
CUT = " [...] "
REASON_LIMIT = 300  # characters that a message quotes of another library's error
# Errors of Python that say nothing about what they mean.
WORDLESS: dict[type[BaseException], str] = {EOFError: "it ends too soon", MemoryError: "it does not fit into memory"}
LINE_BREAK = re.compile(r"[\r\n]\s*")


def spelled(name: str) -> str:
    """Return an option for the text of an error: every interface spells it in its own way.

    `UserError(f"lower {spelled('max_output_len')}")` is `lower --max_output_len` on the command line and `lower
    max_tokens` in Python.
    """
    return f"\0{name}\0"


def one_line(text: str) -> str:
    """Return a text as a bounded line that a terminal can show.

    Names in files may hold line breaks, or characters that move the cursor or set the title: those are escaped.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in _cut(text))
    return _cut(shown)


def reason(error: BaseException) -> str:
    """Return what another library says, for the text of a `UserError`: on one line, in words if it has none."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"[:REASON_LIMIT]
    text = LINE_BREAK.sub(" ", str(error)).strip()[:REASON_LIMIT]
    return text or WORDLESS.get(type(error), type(error).__name__)


def _cut(text: str) -> str:
    half = (MESSAGE_LIMIT - len(CUT)) // 2
    return text if len(text) <= MESSAGE_LIMIT else text[:half] + CUT + text[-half:]


def as_flag(name: str) -> str:
    """Spell an option as a flag of the command line."""
    return f"--{name}"


class UserError(Exception):
    """An error the user can fix: expected, found, where, what to do. Commands print it as one line, with exit code 2.

    `text` may name options with `spelled`. To put one error's text into another, use `text`, not `str`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.render(as_flag)

    def render(self, spell: Callable[[str], str]) -> str:
        """Return the text with its options as `spell` names them, on one bounded line."""
        return one_line(SPELLED.sub(lambda option: spell(option[1]), self.text))

    def as_spelled(self, spell: Callable[[str], str]) -> UserError:
        """Return the same error with its options as `spell` names them."""
        return UserError(self.render(spell))


class CheckFailed(Exception):
    """A check that the user requested did not hold (an accuracy gate): one line, exit code 1."""


def divide_exactly(total: int, parts: int, what: str) -> int:
    """Return `total // parts`; refuse a remainder by name: `divide_exactly(32, 3, "heads")`."""
    if total % parts:
        fits = ", ".join(str(n) for n in range(1, min(total, 64) + 1) if total % n == 0)
        raise UserError(f"{what}: {total} cannot be divided into {parts} equal parts; use one of {fits}")
    return total // parts
