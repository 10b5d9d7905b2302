"""Start a Triton kernel: traced into a compiled program, at once on a GPU, or interpreted on a CPU.

Kernels are interpreted if `TRITON_INTERPRET=1` was set before triton was first imported.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import triton
from torch.library import wrap_triton
from triton.runtime.jit import JITFunction

TRITON_VERSION = str(triton.__version__)
PLUGINS = Path(__file__).parents[1]
GPU_SOURCES = ("cuda/*.py", "*/triton_*.py", "gemm/cuda*.py", "attention/cuda*.py")  # kernels and tactics


def kernel_key() -> str:
    """Return a key that changes with triton and with the text of kernels and tactics."""
    sources = sorted(source for pattern in GPU_SOURCES for source in PLUGINS.glob(pattern))
    text = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    return f"triton {TRITON_VERSION} {text}"


def launcher(kernel: Any) -> Any:
    """Return what starts a kernel by `[grid](*args)`; if a program is traced, the kernel becomes part of it."""
    return wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def ceil_div(a: int, b: int) -> int:
    """Return `a / b` rounded up; both may be symbols of sizes that are known only at run time."""
    return (a + b - 1) // b


def power_of_two(n: int) -> int:
    """Return the least power of two that is not below `n`."""
    return 1 << (n - 1).bit_length()


def depth(stride: int, most: int) -> int:
    """Return the largest power of two up to `most` that divides a row of `stride` elements."""
    return min(most, stride & -stride)
