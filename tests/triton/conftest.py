"""Kernels run on a GPU where there is one; elsewhere triton's interpreter runs them, after a correction."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run; the interpreter reads and writes tensors of the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are small: threads that wait for each other take longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def bf16_products() -> None:
    """The interpreter keeps bfloat16 as its bits and multiplies matrices of those; widen them first."""
    import numpy
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    def widened(handle):
        if handle.dtype.scalar != bfloat16:
            return handle.data
        return interpreter._convert_float(handle.data, bfloat16, float32, None).view(numpy.float32)

    def dot(self, a, b, d, *options):
        product = numpy.matmul(widened(a), widened(b), dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = dot
