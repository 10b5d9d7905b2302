"""The flags of `python -m opt_trt repack`."""

from __future__ import annotations

from dataclasses import dataclass

from opt_trt.config.flags import LOG_LEVELS, Logged, flag
from opt_trt.errors import UserError


@dataclass(frozen=True)
class RepackConfig(Logged):
    """Lay the weights of a packed INT8 or INT4 checkpoint out for another GPU; nothing is quantized again."""

    checkpoint_dir: str | None = flag(None, "checkpoint with packed weights, all its ranks (required)")
    target_sm: int | None = flag(None, "GPU to pack for, 80 = compute capability 8.0 (required)")
    output_dir: str | None = flag(
        None, "directory to write; appears only when it is whole; default: --checkpoint_dir is replaced"
    )
    log_level: str = flag("info", "what to print; verbose adds tracebacks", choices=LOG_LEVELS)

    def __post_init__(self) -> None:
        if self.checkpoint_dir is None:
            raise UserError("--checkpoint_dir is required: a directory written by convert_checkpoint.py")
        if self.target_sm is None:
            raise UserError("--target_sm is required: the GPU to pack for, 90 for compute capability 9.0")
