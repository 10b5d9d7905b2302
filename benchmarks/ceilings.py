"""The ceilings of this machine: its best rates of reading memory and of multiplying, and their drift during a run."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

import torch

from opt_trt.backends.inductor.profiler.ceilings import product_rate, read_rate

TOLERANCE = 0.08  # a run is valid if no ceiling moved by more than this
READ_BYTES = 2**30  # much more than any cache
GEMM_SIZE = 2048
TRIES = 9
READ_TRIES = 60  # two seconds, because memory that is shared with other machines reaches its best rate only at times
STEADY_BYTES, STEADY_TRIES = 2**28, 36


@dataclass(frozen=True)
class MachineCeilings:
    """Rates of all threads together: GB/s read, and GFLOP/s of matrix products in fp32 and in bf16."""

    read_gbs: float
    fp32_gflops: float
    bf16_gflops: float

    def drift(self, later: MachineCeilings) -> float:
        """Return the largest move of any ceiling until `later`, as a share of the larger value."""
        pairs = zip(asdict(self).values(), asdict(later).values(), strict=True)
        return max(abs(a - b) / max(a, b) for a, b in pairs)

    def agrees(self, later: MachineCeilings) -> bool:
        """Return whether a measurement between the two is valid."""
        return self.drift(later) <= TOLERANCE

    def best(self, later: MachineCeilings) -> MachineCeilings:
        """Return the larger rate of each pair, because a ceiling is a rate that was reached once."""
        pairs = zip(asdict(self).values(), asdict(later).values(), strict=True)
        return MachineCeilings(*(max(pair) for pair in pairs))


def measure_ceilings() -> MachineCeilings:
    """Measure the ceilings on all of torch's threads, in about five seconds."""
    products = (product_rate(GEMM_SIZE, dtype, TRIES) for dtype in (torch.float32, torch.bfloat16))
    return MachineCeilings(read_rate(READ_BYTES, READ_TRIES), *products)


def steady_read_rate() -> float:
    """Return the current rate of reading in GB/s, the median over a quarter of a second."""
    return read_rate(STEADY_BYTES, STEADY_TRIES, statistics.median)
