"""The flags of `python -m opt_trt describe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opt_trt.config.flags import INPUT, LOG_LEVELS, OUTPUT, Logged, flag, packed_sm_flag
from opt_trt.errors import UserError


@dataclass(frozen=True)
class DescribeConfig(Logged):
    """Print what a checkpoint, an engine or an original model holds, or what two checkpoints differ in."""

    directories: tuple[str, ...] = flag(
        (), "checkpoint, engine or Hugging Face directory; two checkpoints with --compare", nargs="*",
        positional="DIR", group=INPUT,
    )  # fmt: skip
    compare: bool = flag(
        False, "compare two checkpoints; exit 1 if they differ in more than ranks and packing", group=INPUT
    )
    packed_sm: int | None = packed_sm_flag()
    rank: int | None = flag(None, "list the tensors of this rank only; default: of every rank", group=OUTPUT)
    all: bool = flag(False, "list each layer's tensors; default: a line for equal tensors of all layers", group=OUTPUT)
    sha256: bool = flag(False, "list each tensor with the SHA-256 of its bytes", group=OUTPUT)
    json: bool = flag(False, "print JSON, every tensor on its own, instead of tables", group=OUTPUT)
    log_level: str = flag("info", "info: a progress bar on terminals; verbose adds tracebacks", choices=LOG_LEVELS)

    EXAMPLES: ClassVar[tuple[str, ...]] = ("work/checkpoint", "--compare work/checkpoint work/checkpoint2")

    def __post_init__(self) -> None:
        wanted, found = (2 if self.compare else 1), len(self.directories)
        if found != wanted:
            kind = "two directories" if self.compare else "one directory"
            hint = "; give --compare to compare two" if found == 2 else ""
            raise UserError(f"expected {kind}, found {' '.join(self.directories) or 'none'}{hint}")
        for name, unset in (("rank", None), ("sha256", False)):
            if self.compare and getattr(self, name) is not unset:
                raise UserError(f"--{name} lists one directory, --compare compares whole models; give one of them")

    @property
    def every_layer(self) -> bool:
        """True if each layer's tensors are listed: a hash and a JSON object belong to a single tensor."""
        return self.all or self.sha256 or self.json
