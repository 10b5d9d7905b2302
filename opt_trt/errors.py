"""The errors a person can fix, and the checks that raise them."""

from __future__ import annotations


class UserError(Exception):
    """What was expected, what was found, where, and what to do: one line, exit code 2."""


class CheckFailed(Exception):
    """A check that was asked for did not hold (an accuracy gate): one line, exit code 1."""


def divide_exactly(total: int, parts: int, what: str) -> int:
    """`total // parts`, refused by name when it leaves a remainder: `divide_exactly(32, 3, "heads")`."""
    if total % parts:
        fits = ", ".join(str(n) for n in range(1, min(total, 64) + 1) if total % n == 0)
        raise UserError(f"{what}: {total} cannot be divided into {parts} equal parts; use one of {fits}")
    return total // parts
