"""The GPU that torch sees, and whether an engine is built for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from opt_trt.errors import UserError, spelled


@dataclass(frozen=True)
class Gpu:
    """The current device."""

    name: str
    capability: str  # "9.0"

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def visible_gpu() -> Gpu | None:
    """Return the current GPU, or None if torch sees none."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return Gpu(torch.cuda.get_device_name(), f"{major}.{minor}")


def target_gpu(device: str | None, gpu: Gpu | None) -> Gpu | None:
    """Return the device that an engine is built for: the GPU, or None for the processor.

    Without `--device`, that is the GPU if there is one. `--device cuda` without a GPU is a `UserError`, because tactics
    are checked and timed where an engine is built.
    """
    if device == "cuda" and gpu is None:
        raise UserError(
            f"{spelled('device')} cuda: tactics are timed where an engine is built, and torch "
            f"{torch.__version__} sees no GPU here; build where `nvidia-smi` shows one, with a torch made for CUDA, "
            f"or give {spelled('device')} cpu"
        )
    return None if device == "cpu" else gpu
