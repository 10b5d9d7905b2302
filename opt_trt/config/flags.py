"""Describe a command-line flag once: its default, help, choices and aliases live on the dataclass field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from opt_trt.errors import UserError, spelled

LOG_LEVELS = ("verbose", "info", "warning", "error", "internal_error")
TALKATIVE = LOG_LEVELS[:2]  # see `Logged.talks`


class Logged:
    """Commands that have a `--log_level`."""

    log_level: str

    @property
    def talks(self) -> bool:
        """Whether the command tells what it did, and shows progress on a terminal."""
        return self.log_level in TALKATIVE


@dataclass(frozen=True)
class Flag:
    """How a field appears on the command line; its type is the field's annotation."""

    help: str
    choices: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    nargs: str | None = None
    repeats: bool = False  # every use adds a group of values
    bare: str | None = None  # what the flag means when given without a value
    positional: str | None = None  # given without a name; this stands for it in the help
    group: str | None = None  # the heading it stands under in the help


@dataclass(frozen=True)
class Refusal:
    """A flag of TensorRT-LLM's that cannot act here: why, and the values that ask for what happens anyway.

    `neutral` holds those values as typed; `()` refuses every use, `("",)` is a switch that is true already.
    `note` is printed when a neutral value is given. `advice` is what else leads to what the flag asks for.
    """

    reason: str
    neutral: tuple[str, ...] = ()
    note: str | None = None
    advice: str | None = None

    def check(self, option: str, given: str) -> None:
        """Raise `UserError` unless `given`, as typed, asks for what happens anyway."""
        if given not in self.neutral:
            raise UserError(f"{f'{option} {given}'.strip()} is not supported{self.why(option)}")

    def why(self, option: str) -> str:
        """The reason, and everything a person can do."""
        allowed = " or ".join(f"{option} {v}".strip() for v in self.neutral)
        ways = (self.advice, "drop the flag", f"give {allowed}" if allowed else None)
        return f": {self.reason}; {' or '.join(filter(None, ways))}"


def refuse_given(config: Any, refused: Mapping[str, Refusal]) -> None:
    """Refuse by name the fields of a configuration that were given and cannot act."""
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name in refused and value != f.default:
            refused[f.name].check(spelled(f.name), "" if value is True else str(value))


def flag(default: Any, help: str, **how: Any) -> Any:
    """A dataclass field that is also a flag: `max_batch_size: int = flag(8, "sequences in one step")`."""
    return field(default=default, metadata={"flag": Flag(help, **how)})
