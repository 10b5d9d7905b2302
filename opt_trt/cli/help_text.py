"""The texts of `--help`: what a flag does, what it takes, and how the command is called."""

from __future__ import annotations

import argparse
import inspect
import typing
from dataclasses import Field, fields
from functools import partial
from typing import Any

from opt_trt.config.flags import GROUPS, Flag
from opt_trt.host.program import program

FORMAT = partial(argparse.RawDescriptionHelpFormatter, max_help_position=32)
DIRECTORIES = ("dir", "network")  # last words of flags that name a directory
FILES = ("file", "csv", "npy", "cache", "manifest", "report")  # last words of flags that name a file


def flag_fields(config_class: type) -> list[Field[Any]]:
    """Return the fields of a configuration that are flags, in the order of the help.

    Groups come in the order of `GROUPS`; in a group, required flags first, then those of the command alone as
    it declares them, whether or not it shares their names with other commands.
    """
    own = list(inspect.get_annotations(config_class))

    def place(f: Field[Any]) -> tuple[int, bool, int]:
        flag: Flag = f.metadata["flag"]
        number = GROUPS.index(flag.group) if flag.group in GROUPS else len(GROUPS)  # those of one backend come last
        return number, not flag.required, own.index(f.name) if f.name in own else len(own)

    return sorted((f for f in fields(config_class) if "flag" in f.metadata), key=place)


def usage(config_class: type) -> str:
    """Return one line: the program, and the flags it cannot do without."""
    flags, hints = flag_fields(config_class), typing.get_type_hints(config_class)
    required = [f"--{f.name} {metavar(f, value_type(hints[f.name]))}" for f in flags if f.metadata["flag"].required]
    positional = [f.metadata["flag"].positional for f in flags if f.metadata["flag"].positional]
    return " ".join((program(), *required, *positional, "[flags]"))


def examples(config_class: type) -> str:
    """Return the command lines that a configuration gives as examples."""
    lines = [f"  {program()} {flags}" for flags in getattr(config_class, "EXAMPLES", ())]
    return "\n".join(("examples:", *lines)) if lines else ""


def help_of(f: Field[Any]) -> str:
    """Return the help of a flag with its default, unless that goes without saying or stands in the help."""
    flag: Flag = f.metadata["flag"]
    shown = "required" if flag.required else default_text(f.default)
    told = "default:" in flag.help or flag.positional is not None
    return (flag.help if told or not shown else f"{flag.help} ({shown})").replace("%", "%%")


def default_text(value: Any) -> str:
    """Return `default: 15`; nothing for a switch that is off, and for what is not given."""
    if value is False or value is None or value == ():
        return ""
    values = value if isinstance(value, tuple) else (value,)
    return f"default: {' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)}"


def value_type(hint: Any) -> type:
    """Return the type one value is parsed as: `int | None` → int, `tuple[tuple[str, ...], ...]` → str."""
    while args := typing.get_args(hint):
        hint = next(a for a in args if a is not type(None))
    assert isinstance(hint, type), hint
    return hint


def metavar(f: Field[Any], kind: type) -> str | None:
    """Return the word for a flag's value of a type; None leaves it to the choices."""
    if f.metadata["flag"].choices:
        return None
    if kind is not str:
        return {int: "N", float: "X"}[kind]
    last = f.name.split("_")[-1]
    return "DIR" if last in DIRECTORIES else "FILE" if last in FILES else "TEXT"
