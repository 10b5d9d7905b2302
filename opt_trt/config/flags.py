"""Describe a command-line flag once: a dataclass field has its default, help, choices and aliases."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from opt_trt.errors import UserError, spelled

IDLE = "changes nothing"  # the note of a flag that has no effect on OPT in TensorRT-LLM either
LOG_LEVELS = ("verbose", "info", "warning", "error", "internal_error")
TALKATIVE = LOG_LEVELS[:2]  # see `Logged.talks`

# The headings of the help, in its order. The groups of single commands stand between input and output.
INPUT, OUTPUT, SAMPLING, BEAMS, KV_CACHE, TENSORRT = (
    "input", "output", "sampling", "beams", "KV cache and scheduling", "TensorRT engines and GPUs only",
)  # fmt: skip
CONVERSION = RANKS, QUANTIZATION = "ranks", "quantization"
BUILDING = TARGET, LIMITS, LOGITS, KERNELS = "target", "limits", "logits", "kernels and their timings"
GATE = "accuracy gate"
OTHER = "other"
GROUPS = (INPUT, *CONVERSION, *BUILDING, GATE, OUTPUT, SAMPLING, BEAMS, KV_CACHE, OTHER, TENSORRT)

# Other names of types, by which people and other programs call them.
DTYPE_SPELLINGS = MappingProxyType({
    "fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16",
})  # fmt: skip


class Logged:
    """The base of commands that have a `--log_level`."""

    log_level: str

    @property
    def talks(self) -> bool:
        """True if the command prints what it did, and shows progress on a terminal."""
        return self.log_level in TALKATIVE

    def idle_flags(self) -> tuple[str, ...]:
        """Return a line for each flag that was given and has no effect beside the others."""
        return ()


@dataclass(frozen=True)
class Flag:
    """A field's appearance on the command line; its type is the annotation of the field."""

    help: str
    choices: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    nargs: str | None = None
    repeats: bool = False  # every use of the flag adds a group of values
    bare: str | None = None  # the value when the flag is given without one
    positional: str | None = None  # given without the flag's name; the help prints this word for it
    group: str = OTHER  # its heading in the help
    required: str | None = None  # what it gives; a command is refused without it, see `check_required`
    spellings: Mapping[str, str] = field(default_factory=dict)  # other names of its values


@dataclass(frozen=True)
class Refusal:
    """A flag of TensorRT-LLM that has no effect here: the reason, and the values that are accepted all the same.

    `neutral` holds the values, as typed, that ask for what happens anyway. `()` refuses every use, and `("",)` stands
    for a switch that is always on. `note` is printed when a neutral value is given, unless that asks to do without.
    `advice` names another way to what the flag asks for.
    """

    reason: str
    neutral: tuple[str, ...] = ()
    note: str | None = None
    advice: str | None = None

    def check(self, option: str, given: str) -> None:
        """Raise `UserError` unless `given`, as typed, asks for what happens anyway; print the note if it has one."""
        if self.note and given in self.neutral and given != "disable":
            print(f"{f'{option} {given}'.strip()} {self.note}: {self.reason}", file=sys.stderr)
        if DTYPE_SPELLINGS.get(given, given) not in self.neutral:
            raise UserError(f"{f'{option} {given}'.strip()} is not supported{self.why(option)}")

    def why(self, option: str) -> str:
        """Return the reason, and everything that a user can do."""
        allowed = " or ".join(f"{option} {v}".strip() for v in self.neutral)
        ways = (self.advice, "drop the flag", f"give {allowed}" if allowed else None)
        return f": {self.reason}; {' or '.join(filter(None, ways))}"


def packed_sm_flag() -> Any:
    """Return the field of the flag that says what the `config.json` of NVIDIA's converter leaves out."""
    return flag(
        None,
        "GPU in whose layout a checkpoint's weights are packed, if its config.json does not say it: 80, or 90 if it "
        "was converted on a Hopper GPU",
        group=INPUT,
    )


def check_required(config: Any) -> None:
    """Raise `UserError` for a required flag that was not given."""
    for f in fields(config):
        described = f.metadata.get("flag")
        if described is not None and described.required and getattr(config, f.name) is None:
            raise UserError(f"--{f.name} is required: {described.required}")


def refuse_given(config: Any, refused: Mapping[str, Refusal]) -> None:
    """Raise `UserError` for a field of a configuration that was given and is refused."""
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name in refused and value != f.default:
            refused[f.name].check(spelled(f.name), _typed(value))


def _typed(value: Any) -> str:
    """Return a value as it was typed behind its flag."""
    if value is True:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def flag(default: Any, help: str, **how: Any) -> Any:
    """Return a dataclass field that is also a flag: `max_batch_size: int = flag(8, "sequences in one step")`."""
    return field(default=default, metadata={"flag": Flag(help, **how)})


@dataclass(frozen=True)
class ThreadFlags:
    """The flag of commands that compute on a CPU."""

    threads: int | None = flag(
        None, "threads that compute; default: OMP_NUM_THREADS, or as many as cores, affinity and a container's quota "
        "allow", aliases=("num_threads", "intra_threads"), group=KERNELS,
    )  # fmt: skip

    def check_threads(self) -> None:
        """Raise `UserError` if there is no thread."""
        if self.threads is not None and self.threads < 1:
            raise UserError(f"{spelled('threads')} must be at least 1, found {self.threads}")
