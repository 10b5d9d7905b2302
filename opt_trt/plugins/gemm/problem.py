"""One matrix product of the decoder: its sizes, its types and its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from opt_trt.ops import RELU_SITES, Linear

STORED = {  # weight type → type of the stored elements; a byte holds two int4 that are neighbours along K
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "int8": torch.int8, "int4": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class GemmProblem:
    """One matrix product of the decoder: y [T, n] from x [T, k]."""

    site: str
    n: int
    k: int
    weight_type: str  # one of STORED
    dtype: str  # the model's, to which activations may be rounded
    bias: bool
    residual: bool
    device: str = "cpu"  # or "cuda"

    @property
    def quantized(self) -> bool:
        """True if the weight is integers, with a scale for each output feature."""
        return not STORED[self.weight_type].is_floating_point

    def key(self) -> str:
        """Return the problem's name in timing caches."""
        extra = "".join(f" {name}" for name in ("bias", "residual") if getattr(self, name))
        relu = " relu" * (self.site in RELU_SITES)
        rounded = " rounded" * (self.dtype == "bfloat16")
        return f"gemm n={self.n} k={self.k} {self.weight_type}{rounded}{extra}{relu}"


@dataclass(frozen=True)
class GemmCall:
    """The tensors of one product, the weight in the layout of the tactic that runs."""

    x: torch.Tensor
    linear: Linear
    residual: torch.Tensor | None
