"""Tokens/s of an engine while other programs use the machine's cores, beside what else one could run.

    python benchmarks/contention.py --engine_dir ENGINE --model_dir MODEL --batch_size 1 8
    python benchmarks/contention.py --engine_dir ENGINE --other_checkout DIR --other_engine_dir ENGINE --scenarios idle

Three scenarios, in each of which two sides take turns, each in a process of its own:

- `one core free`: another process on every core but one. The other side has one thread, bound to the free core.
- `no core free`: another process on every core. The other side is transformers in float16 (`--model_dir`).
- `idle`: no other process. The other side is an engine of another checkout (`--other_checkout`).

Other processes may run on any core, as far as the scheduler lets them; only beside the bound side they are bound, too.
A first round is not recorded. Printed are medians, then the least and the largest, and the same of ratios of a round.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

from turns import Spread, ratio

HERE = Path(__file__).parent
BUSY = "while True: sum(range(10000))"


@dataclass(frozen=True)
class Side:
    """A side of a comparison: how its process is started, and the cores it is bound to, if any."""

    name: str
    arguments: tuple[str, ...]  # of `contention_worker.serve`
    checkout: Path
    cores: frozenset[int] | None = None


@dataclass(frozen=True)
class Scenario:
    """Two sides, and how many other processes run meanwhile."""

    name: str
    sides: tuple[Side, Side]
    others: int


class Worker:
    """The process of a side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        environment = os.environ | {"PYTHONPATH": f"{side.checkout}:{HERE}"}
        code = "import sys; from contention_worker import serve; serve(*sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *side.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=side.checkout,
            preexec_fn=lambda: os.sched_setaffinity(0, side.cores) if side.cores else None,
        )  # fmt: skip

    def rate(self, batch_size: int, output_len: int, seed: int) -> float:
        """Generate; return tokens/s."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{batch_size} {output_len} {seed}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@contextmanager
def other_processes(count: int, cores: frozenset[int] | None) -> Iterator[None]:
    """Run processes that compute without end, on some cores if any are given."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY], preexec_fn=lambda: os.sched_setaffinity(0, cores) if cores else None
        )
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def scenarios(a: argparse.Namespace) -> list[Scenario]:
    """Return the scenarios that were asked for."""
    here, cores = HERE.parent, os.sched_getaffinity(0)
    ours = Side("opt_trt", ("engine", a.engine_dir), here)
    bound = Side("one thread, bound", ("engine", a.engine_dir, "1"), here, frozenset([min(cores)]))
    made = [Scenario("one core free", (ours, bound), len(cores) - 1)]
    if a.model_dir:
        made.append(
            Scenario("no core free", (ours, Side("transformers", ("transformers", a.model_dir), here)), len(cores))
        )
    if a.other_checkout:
        other = Side("other checkout", ("engine", a.other_engine_dir), a.other_checkout)
        made.append(Scenario("idle", (ours, other), 0))
    return [scenario for scenario in made if scenario.name in a.scenarios]


def measure(scenario: Scenario, batch_size: int, output_len: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return the tokens/s of both sides, round by round."""
    cores = os.sched_getaffinity(0)
    rates: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        workers = [Worker(side) for side in scenario.sides]
        for worker in workers:
            stack.callback(worker.close)
            worker.rate(batch_size, 2, 0)  # opens the engine
        for index in range(rounds + 1):
            for worker, found in zip(workers, rates, strict=True):
                bound = worker.side.cores
                with other_processes(scenario.others, frozenset(cores - bound) if bound else None):
                    rate = worker.rate(batch_size, output_len, index)
                found += [rate] * (index > 0)
    return rates


def line(scenario: Scenario, batch_size: int, rates: tuple[Sequence[float], Sequence[float]]) -> str:
    """Format a comparison: both sides, and how many times the other side's rate ours is."""
    ours, other = (Spread.of(side).text(0) for side in rates)
    times = ratio(rates[0], rates[1]).text(2)
    return f"{scenario.name:<15}{batch_size:>6}  {ours:<22}{scenario.sides[1].name:<19}{other:<22}{times}"


def absolute(path: str) -> str:
    """Return a path that means the same in a worker, whose directory is its checkout."""
    return str(Path(path).resolve())


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--engine_dir", type=absolute, required=True, help="the engine to measure")
    made.add_argument("--model_dir", type=absolute, help="its Hugging Face model, for transformers")
    made.add_argument("--other_checkout", type=Path, help="a checkout of another version")
    made.add_argument("--other_engine_dir", type=absolute, help="an engine that the other checkout has built")
    made.add_argument("--scenarios", nargs="+", default=["one core free", "no core free", "idle"])
    made.add_argument("--batch_size", type=int, nargs="+", default=[1, 8])
    made.add_argument("--output_len", type=int, default=128)
    made.add_argument("--rounds", type=int, default=7)
    return made


def main() -> None:
    a = parser().parse_args()
    print(f"{'scenario':<15}{'batch':>6}  {'tokens/s':<22}{'beside':<19}{'tokens/s':<22}times")
    for scenario in scenarios(a):
        for batch_size in a.batch_size:
            print(line(scenario, batch_size, measure(scenario, batch_size, a.output_len, a.rounds)), flush=True)


if __name__ == "__main__":
    main()
