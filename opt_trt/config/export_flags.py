"""The flags of `python -m opt_trt export_hf`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from opt_trt.config.flags import INPUT, LOG_LEVELS, OUTPUT, Logged, check_required, flag, packed_sm_flag
from opt_trt.errors import UserError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class ExportConfig(Logged):
    """Rebuild a Hugging Face checkpoint from a TensorRT-LLM checkpoint of any ranks, quantization and packing."""

    checkpoint_dir: str | None = flag(
        None, "checkpoint written by convert_checkpoint.py, all its ranks", group=INPUT,
        required="a directory written by convert_checkpoint.py",
    )  # fmt: skip
    packed_sm: int | None = packed_sm_flag()
    output_dir: str = flag("hf_model", "directory to write; appears only when it is whole", group=OUTPUT)
    max_shard_size: str = flag(
        "5GB", "most bytes of tensors in a file: a number, or one with KB, MB, GB, KiB, MiB, GiB", group=OUTPUT
    )
    tokenizer_dir: str | None = flag(
        None, "copy the tokenizer's files from this directory; default: those kept with the checkpoint", group=INPUT
    )
    log_level: str = flag("info", "what to print; verbose adds tracebacks", choices=LOG_LEVELS)

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--checkpoint_dir work/checkpoint --output_dir work/hf_model",
        "--checkpoint_dir work/int8 --output_dir work/hf_model --max_shard_size 2GB",
    )

    def __post_init__(self) -> None:
        check_required(self)
        if self.max_shard_bytes < 1:
            raise UserError(f"--max_shard_size must be at least 1 byte, found {self.max_shard_size!r}")

    @property
    def max_shard_bytes(self) -> int:
        """The bytes that `max_shard_size` stands for."""
        size = SIZE.fullmatch(self.max_shard_size.strip())
        if size is None or size[2].upper() not in UNITS:
            raise UserError(
                f"--max_shard_size must be bytes or a size like 500MB or 5GB, found {self.max_shard_size!r}"
            )
        return int(size[1]) * UNITS[size[2].upper()]
