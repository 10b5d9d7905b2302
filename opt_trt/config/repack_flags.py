"""The flags of `python -m opt_trt repack`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opt_trt.config.flags import INPUT, LOG_LEVELS, OUTPUT, Logged, check_required, flag, packed_sm_flag


@dataclass(frozen=True)
class RepackConfig(Logged):
    """Lay the weights of a packed INT8 or INT4 checkpoint out for another GPU; nothing is quantized again."""

    checkpoint_dir: str | None = flag(
        None, "checkpoint with packed weights, all its ranks", group=INPUT,
        required="a directory written by convert_checkpoint.py",
    )  # fmt: skip
    packed_sm: int | None = packed_sm_flag()
    target_sm: int | None = flag(
        None, "GPU to pack for, 80 = compute capability 8.0", group=OUTPUT,
        required="the GPU to pack for, 90 for compute capability 9.0",
    )  # fmt: skip
    output_dir: str | None = flag(
        None,
        "directory to write; appears only when it is whole; default: --checkpoint_dir is replaced",
        group=OUTPUT,
    )
    log_level: str = flag("info", "what to print; verbose adds tracebacks", choices=LOG_LEVELS)

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--checkpoint_dir work/int8 --target_sm 90",
        "--checkpoint_dir work/int8 --target_sm 90 --output_dir work/int8_sm90",
    )

    def __post_init__(self) -> None:
        check_required(self)
