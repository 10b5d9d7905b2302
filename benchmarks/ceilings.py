"""What this machine can do at best: rates of reading memory and of multiplying, and whether they held during a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

TOLERANCE = 0.08  # a run counts if no ceiling moved by more
READ_BYTES = 2**30  # much more than any cache
GEMM_SIZE = 2048
TRIES = 9  # the best one: others on the machine can only make it look slower


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
    """Take some three seconds to find out, on as many threads as torch uses."""
    data = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    read = READ_BYTES / _least_seconds(data.sum) / 1e9
    del data
    return Ceilings(read, _gemm_gflops(torch.float32), _gemm_gflops(torch.bfloat16))


def _gemm_gflops(dtype: torch.dtype) -> float:
    a, b = (torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=dtype) for _ in range(2))
    return 2 * GEMM_SIZE**3 / _least_seconds(lambda: a @ b) / 1e9


def _least_seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(TRIES):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
