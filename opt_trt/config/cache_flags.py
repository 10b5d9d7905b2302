"""The flags of `python -m opt_trt cache`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opt_trt.config.flags import INPUT, LOG_LEVELS, Logged, flag
from opt_trt.errors import UserError

ACTIONS = ("list", "size", "clear")
KINDS = ("engines", "programs", "plugins", "inductor", "timing.cache")  # names in the cache's directory


@dataclass(frozen=True)
class CacheConfig(Logged):
    """List, measure or clear what is kept between runs: engines of `LLM`, compiled programs, timings of tactics."""

    actions: tuple[str, ...] = flag(
        (), "list (default), size, or clear, which should not run beside a build", nargs="*", positional="ACTION",
        group=INPUT,
    )  # fmt: skip
    only: tuple[str, ...] = flag(KINDS, "what to list, measure or clear", choices=KINDS, nargs="+", group=INPUT)
    log_level: str = flag("info", "info: clear says what it freed; verbose adds tracebacks", choices=LOG_LEVELS)

    EXAMPLES: ClassVar[tuple[str, ...]] = ("list", "clear --only engines")

    def __post_init__(self) -> None:
        if len(self.actions) > 1 or self.action not in ACTIONS:
            raise UserError(f"expected one of {', '.join(ACTIONS)}, found {' '.join(self.actions)}")

    @property
    def action(self) -> str:
        """The action that was asked for."""
        return self.actions[0] if self.actions else ACTIONS[0]
