"""Build the parser of a configuration: an argument for each flag field, a refusal for each flag that cannot act."""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Sequence
from dataclasses import Field
from typing import Any, NoReturn

from opt_trt.cli.arguments import marked, reading, unmarked
from opt_trt.cli.help_text import FORMAT, examples, flag_fields, help_of, metavar, usage, value_type
from opt_trt.config.flags import Flag, Refusal
from opt_trt.config.suggestions import did_you_mean
from opt_trt.errors import UserError
from opt_trt.host.program import program
from opt_trt.version import __version__

UNKNOWN = "unrecognized arguments: "
TOO_FEW = re.compile(r"^argument (--\w+)\S*: expected .*arguments?$")


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s and which takes no abbreviations."""

    def __init__(self, config_class: type) -> None:
        super().__init__(
            prog=program(),
            usage=usage(config_class).replace("%", "%%"),
            description=(config_class.__doc__ or "").strip(),
            epilog=examples(config_class),
            formatter_class=FORMAT,
            allow_abbrev=False,
            add_help=False,
        )
        self.groups: dict[str, argparse._ActionsContainer] = {}

    def group(self, heading: str) -> argparse._ActionsContainer:
        """Return the group of flags below a heading of the help."""
        if heading not in self.groups:
            self.groups[heading] = self.add_argument_group(heading)
        return self.groups[heading]

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command line whose values may begin with a dash."""
        positional = any(not action.option_strings for action in self._actions)
        return self.parse_intermixed_args(marked(words, self._option_string_actions, positional))

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage and exiting."""
        said = unmarked(message)
        hints = self._meant(said) if said.startswith(UNKNOWN) else ""
        if flag := TOO_FEW.match(said):
            hints = f"write {flag[1]}=VALUE if the value looks like a flag; "
        raise UserError(f"{said}; {hints}{self.prog} --help lists the flags")

    def print_help(self, file: Any = None) -> None:
        """Print at once, and raise where argparse passes over what cannot be written."""
        print(self.format_help(), end="", file=file, flush=True)

    def _meant(self, message: str) -> str:
        """Return the known flags that are like the first unknown one."""
        unknown = next((word for word in message.removeprefix(UNKNOWN).split() if word.startswith("-")), "")
        known = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        meant = did_you_mean(unknown.partition("=")[0].lstrip("-"), known)
        return re.sub(r"(\w+)(?= or|\?)", r"--\1", meant) + " " if meant else ""


def build_parser(config_class: type) -> Parser:
    """Return the parser of a configuration."""
    parser = Parser(config_class)
    hints = typing.get_type_hints(config_class)
    for f in flag_fields(config_class):
        _add_flag(parser.group(f.metadata["flag"].group), f, hints[f.name])
    for name, refusal in getattr(config_class, "REFUSED", {}).items():
        option = name if name.startswith("-") else f"--{name}"
        parser.add_argument(
            option, nargs="*", action=_RefuseAction, refusal=refusal, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    about = parser.group("other")
    about.add_argument("-h", "--help", action="help", help="print this")
    about.add_argument("--version", action=_VersionAction, help="print the version of opt_trt")
    return parser


def _add_flag(group: argparse._ActionsContainer, f: Field[Any], hint: Any) -> None:
    flag: Flag = f.metadata["flag"]
    names = [f"--{name}" for name in (f.name, *flag.aliases)]
    if hint is bool:
        group.add_argument(*names, dest=f.name, action="store_true", default=f.default, help=help_of(f))
        return
    how = _how(f, value_type(hint))
    if flag.positional:  # without it, the field keeps its default, which need not be shown
        group.add_argument(f.name, **how | {"metavar": flag.positional, "default": argparse.SUPPRESS})
        return
    group.add_argument(*names, dest=f.name, default=f.default, **how)


def _how(f: Field[Any], kind: type) -> dict[str, Any]:
    """Return the keywords of argparse for a flag that takes values."""
    flag: Flag = f.metadata["flag"]
    how: dict[str, Any] = {
        "type": reading(kind, lambda word: flag.spellings.get(word, word)),
        "choices": tuple(map(kind, flag.choices)) if flag.choices else None,
        "help": help_of(f),
        "metavar": metavar(f, kind),
    }
    if flag.nargs:
        how["nargs"] = flag.nargs
    if flag.repeats:
        how["action"] = "append"
    return how | ({"nargs": "?", "const": flag.bare} if flag.bare else {})


class _RefuseAction(argparse.Action):
    """An action that accepts a refused flag only with a value that asks for what happens anyway."""

    def __init__(self, *args: Any, refusal: Refusal, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refusal = refusal

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        assert option is not None
        self.refusal.check(option, unmarked(" ".join(values)))


class _VersionAction(argparse.Action):
    """An action that prints the version; unlike argparse's own, it raises if it cannot be written."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        print(f"opt_trt {__version__}", flush=True)
        parser.exit()
