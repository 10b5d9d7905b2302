"""How a Triton kernel is started: traced into a compiled program, on a GPU at once, or interpreted on a CPU.

Kernels are interpreted if `TRITON_INTERPRET=1` was set before triton was first imported.
"""

from __future__ import annotations

from typing import Any

import triton
from torch.library import wrap_triton
from triton.runtime.jit import JITFunction

TRITON_VERSION = str(triton.__version__)


def launcher(kernel: Any) -> Any:
    """`launcher(kernel)[grid](*args)` starts `kernel`; while a program is traced it becomes part of it."""
    return wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def ceil_div(a: int, b: int) -> int:
    """Programs of `b` that cover `a`; also of sizes that are known at run time only."""
    return (a + b - 1) // b


def power_of_two(n: int) -> int:
    """The least power of two that is not below `n`."""
    return 1 << (n - 1).bit_length()


def depth(stride: int, most: int) -> int:
    """The largest power of two up to `most` that divides a row of `stride` elements."""
    return min(most, stride & -stride)
