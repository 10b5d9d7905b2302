"""`docs/cli.md`: every command with its flags, from the tables that the commands themselves read."""

from __future__ import annotations

import re
import signal
import tomllib
from collections.abc import Mapping
from pathlib import Path

from docs.generate.flags import FlagRow, flag_table, refusal_table, rows_of
from docs.generate.markdown import COLUMNS, block, code, paragraph, prose, table
from opt_trt import cli
from opt_trt.commands import COMMANDS
from opt_trt.config import runtime_flags
from opt_trt.config.backend_answers import ANSWERS, PROPER_ANSWERS, RTX_ANSWERS
from opt_trt.config.flags import Refusal
from opt_trt.config.tensorrt_flags import TensorRtOptions

ROOT = Path(__file__).parents[2]
SCRIPT = re.compile(r"^from opt_trt.commands import (\w+)$", re.MULTILINE)
INTRODUCTION = """
Every command prints its flags with `--help`, the version with `--version`, and exits with one of the codes below.
A flag of TensorRT-LLM that cannot act here is refused with the reason, never ignored. A value that asks for what
happens anyway is accepted, so that command lines written for TensorRT-LLM keep working. Flags cannot be abbreviated.
They may be written with dashes (`--model-dir`), and types as `fp32`, `float`, `fp16`, `half` and `bf16`. A value may
begin with a dash (`--stop_words "---"`); one that looks like a flag is written `--stop_words=--end`.
"""
SHARED = "Flags that `run` and `summarize` share"
EXIT_CODES = {
    0: "The command did what it was asked to do.",
    cli.EXIT_CHECK_FAILED: "A check that was asked for failed: the accuracy gate, or `--compare` found a difference.",
    cli.EXIT_USER_ERROR: "The user can fix it: one line says what was expected, what was found, where, what to do.",
    128 + signal.SIGHUP: "The terminal was closed (SIGHUP). Nothing half-written is left; `nohup` prevents it.",
    cli.EXIT_INTERRUPTED: "Ctrl-C (SIGINT) ended the command. Nothing half-written is left.",
    cli.EXIT_UNREAD: "The program that read the output ended (SIGPIPE), as in `run.py ... | head`.",
    128 + signal.SIGTERM: "SIGTERM ended the command. Nothing half-written is left.",
    128 + signal.SIGHUP: "The terminal was closed (SIGHUP). Nothing half-written is left; `nohup` prevents it.",
}


def cli_page() -> str:
    """Return the whole page."""
    sections = [_command(name, command.config_class) for name, command in COMMANDS.items()]
    codes = ((code(int(number)), meaning) for number, meaning in EXIT_CODES.items())
    return "\n".join((
        "# Commands and flags\n",
        "<!-- Written by `make docs` from opt_trt/commands.py and opt_trt/config/: do not edit. -->\n",
        paragraph(INTRODUCTION), _overview(), "## Exit codes\n", table(("code", "meaning"), codes),
        *sections, _shared(),
    ))  # fmt: skip


def _overview() -> str:
    consoles = _console_scripts()
    rows = ((f"[`{name}`](#{name})", code(_typed(name)), code(consoles[name]), command.config_class.__doc__ or "")
            for name, command in COMMANDS.items())  # fmt: skip
    return table(("command", "in the repository", "installed", "what it does"), rows)


def _typed(name: str) -> str:
    """Return what starts a command in the repository: its script, else its module."""
    scripts = {found: path.name for path in sorted(ROOT.glob("*.py")) for found in SCRIPT.findall(path.read_text())}
    if name in scripts:
        return f"python {scripts[name]}"
    return f"python -m opt_trt {name}" if (ROOT / "opt_trt/__main__.py").exists() else f"python -m opt_trt.{name}"


def _console_scripts() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {target.split(":")[1]: script for script, target in project["scripts"].items()}


def _command(name: str, config_class: type) -> str:
    rows = rows_of(config_class)
    shared = [row for row in rows if _is_shared(row, config_class)]
    own = [row for row in rows if row not in shared]
    parts = [f"## {name}\n", paragraph(prose(config_class.__doc__ or "")), _synopsis(name, rows), *_groups(own)]
    parts += _answers() if issubclass(config_class, TensorRtOptions) else []
    parts += [paragraph(f"More flags: [{SHARED.lower()}](#{_anchor(SHARED)}).")] if shared else []
    parts += _refused(_own_refusals(config_class), f"{name} refuses")
    return "\n".join(parts)


def _groups(rows: list[FlagRow]) -> list[str]:
    """Return a table for each group of flags, below its heading in the help."""
    parts = []
    for group in dict.fromkeys(row.flag.group for row in rows):
        parts += [paragraph(f"**{group[:1].upper()}{group[1:]}**")]
        parts += [flag_table([row for row in rows if row.flag.group == group])]
    return parts


def _synopsis(name: str, rows: list[FlagRow]) -> str:
    words = [row.name if row.flag.positional else f"{row.name} {row.field.name.upper()}" for row in rows
             if row.flag.positional or row.flag.required]  # fmt: skip
    line = " ".join((_typed(name), *words, "[flags]"))
    assert len(line) <= COLUMNS, line
    return block(line, "bash")


def _is_shared(row: FlagRow, config_class: type) -> bool:
    """Return whether other commands have the same flag from the same class."""
    classes = [command.config_class for command in COMMANDS.values()]
    return row.owner is not config_class and sum(issubclass(c, row.owner) for c in classes) > 1


def _own_refusals(config_class: type) -> Mapping[str, Refusal]:
    """Return the refused flags of a command that no other command takes from the same table."""
    others = [c.config_class for c in COMMANDS.values() if c.config_class is not config_class]
    shared = {id(refusal) for other in others for refusal in _refusals(other).values()}
    return {name: refusal for name, refusal in _refusals(config_class).items() if id(refusal) not in shared}


def _refusals(config_class: type) -> Mapping[str, Refusal]:
    refused: Mapping[str, Refusal] = getattr(config_class, "REFUSED", {})
    return refused


def _shared() -> str:
    """Return the section of the flags that two commands inherit."""
    run, summarize = COMMANDS["run"].config_class, COMMANDS["summarize"].config_class
    rows = [row for row in rows_of(run) if _is_shared(row, run)]
    parts = [
        f"## {SHARED}\n",
        *_groups(rows),
        paragraph(
            "What our own engines, on a CPU or with CUDA, and those of the backend `tensorrt` answer to these flags:"
        ),
        _runtime_table(run),
    ]
    common = {n: r for n, r in _refusals(run).items() if _refusals(summarize).get(n) is r}
    return "\n".join((*parts, *_refused(common, "run and summarize refuse")))


def _refused(refused: Mapping[str, Refusal], who_refuses: str) -> list[str]:
    return [f"### Flags of TensorRT-LLM that {who_refuses}\n", refusal_table(refused)] if refused else []


def _answers() -> list[str]:
    """Return what each backend refuses, and the values that it takes."""
    tables = {f"What {code(f'--backend {name}')} refuses, and the values it accepts:": t for name, t in ANSWERS.items()}
    tables["With TensorRT-RTX, `--backend tensorrt` refuses besides:"] = RTX_ANSWERS
    tables["With TensorRT proper, `--backend tensorrt` refuses besides:"] = PROPER_ANSWERS
    return [part for title, refused in tables.items() for part in (paragraph(title), refusal_table(refused))]


def _runtime_table(config_class: type) -> str:
    devices = tuple(runtime_flags.EMBEDDED)
    names = [row.field.name for row in rows_of(config_class) if row.field.name in runtime_flags.EMBEDDED[devices[0]]]
    rows = (
        (code(f"--{name}"), *(_answer(runtime_flags.EMBEDDED[device][name]) for device in devices)) for name in names
    )
    return table(("flag", *(code(device) for device in devices)), rows)


def _answer(refusal: Refusal) -> str:
    if refusal.reason:
        return f"refused: {prose(refusal.reason)}"
    return prose(refusal.note.partition(": ")[2]) if refusal.note else "it acts"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
