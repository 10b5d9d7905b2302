"""What this machine can do at best: rates of reading memory and of multiplying, and whether they held during a run."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

import torch

from opt_trt.backends.inductor.profiler.ceilings import product_rate, read_rate

TOLERANCE = 0.08  # a run counts if no ceiling moved by more
READ_BYTES = 2**30  # much more than any cache
GEMM_SIZE = 2048
TRIES = 9
READ_TRIES = 60  # two seconds: memory that neighbours share is at its best now and then only
STEADY_BYTES, STEADY_TRIES = 2**28, 36


@dataclass(frozen=True)
class Ceilings:
    """Rates over all threads: GB/s read, GFLOP/s of matrix products in fp32 and in bf16."""

    read_gbs: float
    fp32_gflops: float
    bf16_gflops: float

    def drift(self, later: Ceilings) -> float:
        """The largest move of any ceiling until `later`, as a share of the larger of the two."""
        pairs = zip(asdict(self).values(), asdict(later).values(), strict=True)
        return max(abs(a - b) / max(a, b) for a, b in pairs)

    def agrees(self, later: Ceilings) -> bool:
        """Whether what was measured between the two counts."""
        return self.drift(later) <= TOLERANCE

    def best(self, later: Ceilings) -> Ceilings:
        """The larger of each: a ceiling is what was reached once."""
        pairs = zip(asdict(self).values(), asdict(later).values(), strict=True)
        return Ceilings(*(max(pair) for pair in pairs))


def measure_ceilings() -> Ceilings:
    """Take some five seconds to find out, on as many threads as torch uses."""
    products = (product_rate(GEMM_SIZE, dtype, TRIES) for dtype in (torch.float32, torch.bfloat16))
    return Ceilings(read_rate(READ_BYTES, READ_TRIES), *products)


def steady_read_rate() -> float:
    """GB/s that reading reaches now, the median of a quarter of a second."""
    return read_rate(STEADY_BYTES, STEADY_TRIES, statistics.median)
