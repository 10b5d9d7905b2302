"""Everything that a GPU can prove about this project, in under eight minutes, with one command and no network.

    python benchmarks/gpu_day.py

Steps run one after another, correctness before speed, each for no longer than its limit; what it started is then
killed. A failed step does not stop the others. Before the first, all that will be skipped is named, with the reason.
After each, the results so far are in `gpu-day.json` and, as a table for docs/gpu.md, in `gpu-day.md`, beside the output
of every step. The exit code is 0 if all that ran passed, 1 if something failed or was stopped, and 2 if nothing ran.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOTAL_S, LEAST_S, FACTS_S = 470.0, 5.0, 60.0  # of all steps; a step is not begun with less; of looking around
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
PYTEST = ("-m", "pytest", "-vv", "-rPs", "--tb=short", "-p", "no:cacheprovider", "-m", "not slow")
MEASURED = "measured: "  # begins the lines of a test's output that are results
# A test's outcome, with one process or with several: the lists at the end of pytest's output have other beginnings.
OUTCOME = re.compile(r"^(?:tests/\S+::.* |\[gw\d+\] \[ *\d+%\] )(PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)
REASON = re.compile(r"^SKIPPED \[\d+\] \S+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A program to run: what it proves, for how long at most, and what must be there."""

    name: str
    proves: str
    words: tuple[str, ...]  # Python's arguments
    limit_s: float
    needs: tuple[str, ...]  # names of `gpu_facts.QUESTIONS`
    is_parallel: bool = False  # its tests may run in several processes

    @property
    def is_test(self) -> bool:
        """True if it proves that something is right, False if it measures how fast it is."""
        return self.words[: len(PYTEST)] == PYTEST


def proof(name: str, proves: str, words: str, limit_s: float, needs: str, is_parallel: bool = False) -> Step:
    """Return a step of tests; `words` are their files, `needs` names of `gpu_facts.QUESTIONS`."""
    return Step(name, proves, (*PYTEST, *words.split()), limit_s, ("pytest", "gpu", *needs.split(",")), is_parallel)


def timing(name: str, proves: str, words: str, limit_s: float, needs: str) -> Step:
    """Return a step of measurements."""
    return Step(name, proves, tuple(words.split()), limit_s, ("gpu", *needs.split(",")))


TENSORRT_TESTS, RANK_TESTS = "tests/gpu/test_tensorrt.py", "tests/gpu/test_ranks.py"
AT_ONCE = f"{TENSORRT_TESTS}::test_the_library_says_at_once_whether_this_gpu_runs_an_engine"
ENGINES = "triton,compiler,headers"
STEPS = (
    proof("validity", "whether TensorRT runs our engines on this GPU", AT_ONCE, 30, "tensorrt"),
    proof("kernels", "our kernels equal their references", "tests/triton --ignore=tests/triton/test_ahead.py", 80,
          "triton", is_parallel=True),
    proof("real sizes", "so they do at real sizes, and captured as graphs",
          "tests/gpu/test_kernels.py tests/gpu/test_graphs.py", 60, "triton,headers"),
    proof("TensorRT engines", "TensorRT engines say what transformers says", f"{TENSORRT_TESTS} --deselect {AT_ONCE}",
          90, "tensorrt,tensorrt target"),
    proof("CUDA engine", "embedded engines say what transformers says", "tests/gpu/test_engine.py", 150, ENGINES),
    proof("ranks on one GPU", "ranks that share a GPU say what transformers says", f"{RANK_TESTS} -k share", 50,
          f"{ENGINES},mpirun"),
    proof("ranks on several", "so do ranks with a GPU each", f"{RANK_TESTS} -k each", 50, f"{ENGINES},mpirun,two GPUs"),
    timing("CUDA decoding", "time of a step with our kernels",
          "benchmarks/gpu.py decode --shape 350m 6.7b --weights float16 int8 int4 --batch_size 1 8", 60, "triton"),
    timing("TensorRT decoding", "time of a step of a TensorRT engine, by length",
          "benchmarks/gpu_tensorrt.py --weights float16 int8 int4", 60, "tensorrt,tensorrt target"),
    timing("TensorRT attention", "error and time of attention as we build it, and as the library's own layer",
          "benchmarks/gpu_attention.py", 40, "tensorrt,tensorrt target"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    name: str
    proves: str
    result: str  # passed, failed, stopped (at its limit), skipped
    why: str = ""
    seconds: float = 0.0
    tests: Mapping[str, int] | None = None  # by pytest's words, as far as they came
    measured: Sequence[str] = ()
    tail: str = ""  # the end of the output of a step that did not pass


def run_step(step: Step, limit_s: float, log: Path, workers: int = 0) -> Outcome:
    """Run a step; whatever it started is killed when it ends, when the time is over, and at Ctrl-C."""
    words = (*step.words, "-n", str(workers)) if step.is_parallel and workers else step.words
    begun, code = time.monotonic(), None
    with log.open("wb") as output:
        process = subprocess.Popen(
            (sys.executable, *words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
            env=os.environ | ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(limit_s)
        finally:
            kill(process)
    return replace(judge(step, code, log.read_text(errors="replace"), limit_s), seconds=time.monotonic() - begun)


def judge(step: Step, code: int | None, text: str, limit_s: float) -> Outcome:
    """Say what an exit code (None: stopped) and an output mean."""
    counted = OUTCOME.findall(text)
    counts = {word: counted.count(word) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")} if step.is_test else None
    lines = [line for line in text.splitlines() if line.strip()]
    measured = [line.removeprefix(MEASURED) for line in lines if line.startswith(MEASURED)] if step.is_test else lines
    result, why = "passed", ""
    if code is None:
        result, why = "stopped", f"at its limit of {limit_s:.0f} s"
    elif counts and code in (0, 5) and not counts["PASSED"]:
        result, why = "skipped", next(iter(REASON.findall(text)), "no test was found")
    elif code:
        result, why = "failed", f"exit code {code}"
    tail = "" if result == "passed" else "\n".join(lines[-40:])
    return Outcome(step.name, step.proves, result, why, 0.0, counts, measured, tail)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that descend from it or share its session, until none is left; then reap it."""
    while family := living(process.pid):
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    process.wait()


def living(root: int) -> set[int]:
    """Return the processes of a session, and their descendants; zombies are dead."""
    facts: dict[int, tuple[str, int, int]] = {}  # state, parent, session
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, _, session = path.read_text(errors="replace").rpartition(")")[2].split()[:4]
            facts[int(path.parent.name)] = (state, int(parent), int(session))
    found, before = {root}, 0
    while len(found) > before:
        before = len(found)
        found |= {pid for pid, (_, parent, session) in facts.items() if parent in found or session == root}
    return {pid for pid in found if pid in facts and facts[pid][0] != "Z"}


def look_around(out: Path) -> dict[str, Any]:
    """Return `gpu_facts`; if they cannot be had, everything is missing for that reason."""
    log = out / "facts.log"
    step = Step("facts", "", ("benchmarks/gpu_facts.py",), FACTS_S, ())
    outcome = run_step(step, FACTS_S, log)
    try:
        return dict(json.loads(next(line for line in outcome.measured if line.startswith("{"))))
    except (StopIteration, ValueError):
        reason = f"looking at this machine {outcome.result} ({outcome.why}), see {log}"
        return {"machine": {}, "missing": {name: reason for step in STEPS for name in step.needs}, "workers": 0}


def missing_for(step: Step, facts: Mapping[str, Any]) -> str:
    """Return why a step cannot run here, or ""."""
    return next((facts["missing"][name] for name in step.needs if facts["missing"].get(name)), "")


def run_day(steps: Sequence[Step], facts: Mapping[str, Any], out: Path, total_s: float = TOTAL_S) -> list[Outcome]:
    """Run all steps that can run here, and write what came of each as soon as it is known."""
    print("\n".join(f"{name}: {value}" for name, value in facts["machine"].items()))
    for step in steps:
        reason = missing_for(step, facts)
        print(f"will skip {step.name}: {reason}" if reason else f"will run {step.name}: {step.proves}")
    outcomes: list[Outcome] = []
    end = time.monotonic() + total_s
    for step in steps:
        limit_s, reason = min(step.limit_s, end - time.monotonic()), missing_for(step, facts)
        if not reason and limit_s < min(LEAST_S, step.limit_s):
            reason = "no time was left"
        if reason:
            outcomes.append(Outcome(step.name, step.proves, "skipped", reason))
        else:
            print(f"{step.name} (up to {limit_s:.0f} s) ...", flush=True)
            outcomes.append(run_step(step, limit_s, out / f"{step.name.replace(' ', '-')}.log", int(facts["workers"])))
            print(f"  {described(outcomes[-1])}", flush=True)
        write(outcomes, facts, out)
    return outcomes


def described(outcome: Outcome) -> str:
    """Return a result in words: `failed (exit code 1), 3 passed, 1 failed, 12 s`."""
    counts = [f"{count} {word.lower()}" for word, count in (outcome.tests or {}).items() if count]
    head = f"{outcome.result} ({outcome.why})" if outcome.why else outcome.result
    seconds = [] if outcome.result == "skipped" else [f"{outcome.seconds:.0f} s"]
    return ", ".join([head, *counts, *seconds])


def write(outcomes: Sequence[Outcome], facts: Mapping[str, Any], out: Path) -> None:
    """Write the results so far, in both forms."""
    values = {"date": time.strftime("%Y-%m-%d %H:%M"), **facts, "steps": [asdict(outcome) for outcome in outcomes]}
    (out / "gpu-day.json").write_text(json.dumps(values, indent=2) + "\n")
    (out / "gpu-day.md").write_text(table(outcomes, facts))


def table(outcomes: Sequence[Outcome], facts: Mapping[str, Any]) -> str:
    """Return the table for docs/gpu.md, and below it what was measured."""
    machine = ", ".join(f"{name} {value}" for name, value in facts["machine"].items())
    lines = [f"{machine}, {time.strftime('%Y-%m-%d')}:", "", "| step | what it proves | result |", "|---|---|---|"]
    lines += [f"| {o.name} | {o.proves} | {described(o).replace('|', '/')} |" for o in outcomes]
    measured = [line for outcome in outcomes for line in outcome.measured]
    lines += ["", "```", *measured, "```"] if measured else []
    return "\n".join(lines) + "\n"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 0 if all that ran passed, 1 if something did not, 2 if nothing ran."""
    results = {outcome.result for outcome in outcomes}
    return 1 if results & {"failed", "stopped"} else 0 if "passed" in results else 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "work" / "gpu-day")
    out = parser.parse_args().output_dir
    out.mkdir(parents=True, exist_ok=True)
    outcomes = run_day(STEPS, look_around(out), out)
    print(f"results: {out / 'gpu-day.json'}, table: {out / 'gpu-day.md'}")
    sys.exit(exit_code(outcomes))


if __name__ == "__main__":
    main()
