"""Run kernels on a GPU if there is one; otherwise correct triton's interpreter, which then runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """Return the device that kernels run on; the interpreter reads and writes tensors of the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread: tensors are so small that threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def bf16_products() -> None:
    """Have the interpreter widen bfloat16 before products: it keeps their bits, and would multiply these."""
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
