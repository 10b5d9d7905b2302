"""The day with a GPU, with steps that stand in: order, time limits that kill, results of everything that ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gpu_day
import gpu_facts
import pytest
from gpu_day import STEPS, Outcome, Step, exit_code, judge, look_around, missing_for, proof, run_day, run_step

from tests._processes import start_python

FACTS: dict[str, Any] = {"machine": {"gpu": "a stand-in", "torch": "2.13"}, "missing": {}, "workers": 0}
# It starts a process in a session of its own that heeds no signal but the one that kills, writes its number, and waits.
STUBBORN = """
import subprocess, sys, time, pathlib, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
print("measured: before the end", flush=True)
time.sleep(600)
"""


def script(name: str, code: str, *words: object, limit_s: float = 30.0, needs: tuple[str, ...] = ()) -> Step:
    return Step(name, f"proves {name}", ("-c", code, *map(str, words)), limit_s, needs)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_step_after_another_whatever_becomes_of_each(tmp_path, capfd) -> None:
    order = tmp_path / "order"
    note = f"open({str(order)!r}, 'a').write"
    steps = [
        script("first", f"{note}('1'); print('1.5 ms')"),
        script("wrong", f"{note}('2'); print('why it failed'); raise SystemExit(3)"),
        script("absent", f"{note}('x')", needs=("gpu", "headers")),
        script("slow", f"{note}('3'); import time; time.sleep(600)", limit_s=1.0),
        script("last", f"{note}('4')"),
    ]
    facts = FACTS | {"missing": {"gpu": "", "headers": "no headers | none"}}
    outcomes = run_day(steps, facts, tmp_path)
    assert order.read_text() == "1234"
    assert [outcome.result for outcome in outcomes] == ["passed", "failed", "skipped", "stopped", "passed"]
    assert outcomes[1].why == "exit code 3" and outcomes[1].tail == "why it failed"
    assert outcomes[2].why == "no headers | none" and 0.9 < outcomes[3].seconds < 20
    said = capfd.readouterr().out
    assert said.index("will skip absent: no headers") < said.index("first (up to 30 s)")

    found = json.loads((tmp_path / "gpu-day.json").read_text())
    assert found["machine"] == FACTS["machine"] and found["missing"]["headers"] == "no headers | none"
    assert [step["result"] for step in found["steps"]] == [outcome.result for outcome in outcomes]
    table = (tmp_path / "gpu-day.md").read_text()
    assert table.startswith("gpu a stand-in, torch 2.13, ") and "1.5 ms" in table
    assert "| wrong | proves wrong | failed (exit code 3), " in table
    assert "| absent | proves absent | skipped (no headers / none) |" in table
    assert "| slow | proves slow | stopped (at its limit of 1 s), " in table


def test_a_limit_kills_all_that_a_step_has_started(tmp_path) -> None:
    outcome = run_step(script("hangs", STUBBORN, tmp_path / "pid"), 5.0, tmp_path / "log")
    pid = int((tmp_path / "pid").read_text())  # it came as far as that
    assert outcome.result == "stopped" and not is_alive(pid)
    assert "before the end" in outcome.tail


def test_what_a_step_leaves_behind_is_killed_too(tmp_path) -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); open(sys.argv[1], 'w').write(str(p.pid))"
    outcome = run_step(script("leaves", code, tmp_path / "pid"), 30.0, tmp_path / "log")
    assert outcome.result == "passed" and not is_alive(int((tmp_path / "pid").read_text()))


def test_ctrl_c_kills_the_step_and_keeps_the_results_so_far(tmp_path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path[:0] = ['benchmarks', '.']; import gpu_day\n"
        "from tests.unit.benchmarks.test_gpu_day import FACTS, STUBBORN, script\n"
        f"out = Path({str(tmp_path)!r})\n"
        "gpu_day.run_day([script('first', 'pass'), script('hangs', STUBBORN, out / 'pid')], FACTS, out)"
    )
    with start_python("-c", program) as day:
        for _ in range(1200):
            if (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text():
                break
            time.sleep(0.1)
        day.send_signal(signal.SIGINT)
        day.communicate(timeout=120)
    assert not is_alive(int((tmp_path / "pid").read_text()))
    [first] = json.loads((tmp_path / "gpu-day.json").read_text())["steps"]
    assert (first["name"], first["result"]) == ("first", "passed")


def test_no_step_begins_when_the_time_of_the_day_is_over(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_day, "LEAST_S", 0.5)
    steps = [script("long", "import time; time.sleep(600)"), script("late", "pass")]
    first, second = run_day(steps, FACTS, tmp_path, total_s=1.0)
    assert (first.result, first.why) == ("stopped", "at its limit of 1 s")
    assert (second.result, second.why) == ("skipped", "no time was left")


@pytest.mark.parametrize(
    ("results", "code"),
    [(["passed", "skipped"], 0), (["passed", "failed"], 1), (["stopped"], 1), (["skipped", "skipped"], 2), ([], 2)],
)
def test_the_exit_code_tells_passed_from_failed_and_from_nothing(results, code) -> None:
    assert exit_code([Outcome("a", "b", result) for result in results]) == code


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_outcomes_of_tests_are_counted(tmp_path, workers) -> None:
    files = "tests/unit/test_errors.py" + " tests/gpu/test_graphs.py" * workers  # skipped, all three
    outcome = run_step(proof("a", "b", files, 120, "", is_parallel=True), 120, tmp_path / "log", workers)
    assert outcome.result == "passed", outcome.tail
    assert outcome.tests == {"PASSED": 7, "FAILED": 0, "ERROR": 0, "SKIPPED": 3 * workers}


def test_a_step_whose_tests_were_all_skipped_is_skipped_for_their_reason() -> None:
    text = "tests/gpu/a.py::one SKIPPED (needs a CUDA GPU) [100%]\nSKIPPED [1] tests/gpu/a.py: needs a CUDA GPU"
    outcome = judge(proof("a", "b", "tests/gpu/a.py", 10, ""), 0, text, 10)
    assert (outcome.result, outcome.why) == ("skipped", "needs a CUDA GPU")


def test_what_tests_measured_is_kept_and_what_failed_is_shown() -> None:
    text = "tests/a.py::one PASSED [ 50%]\ntests/a.py::two FAILED [100%]\nmeasured: 3.5 ms\nFAILED tests/a.py::two"
    outcome = judge(proof("a", "b", "tests/a.py", 10, ""), 1, text, 10)
    assert (outcome.result, outcome.why, list(outcome.measured)) == ("failed", "exit code 1", ["3.5 ms"])
    assert (outcome.tests["PASSED"], outcome.tests["FAILED"]) == (1, 1) and outcome.tail == text
    assert judge(script("a", ""), 0, "1 ms\n\n2 ms", 10).measured == ["1 ms", "2 ms"]


def test_correctness_comes_before_speed_and_all_of_it_fits_into_eight_minutes() -> None:
    kinds = [step.is_test for step in STEPS]
    assert kinds == sorted(kinds, reverse=True) and False in kinds
    assert gpu_day.TOTAL_S + gpu_day.FACTS_S < 9 * 60 and gpu_day.TOTAL_S < 8 * 60
    assert all("gpu" in step.needs for step in STEPS)
    assert {name for step in STEPS for name in step.needs} == gpu_facts.QUESTIONS.keys()


def test_every_step_names_files_that_are_there() -> None:
    words = [word.removeprefix("--ignore=").partition("::")[0] for step in STEPS for word in step.words]
    files = [word for word in words if word.startswith(("tests/", "benchmarks/"))]
    assert len(files) >= len(STEPS) and all((gpu_day.ROOT / name).exists() for name in files)
    assert gpu_day.AT_ONCE.rpartition("::")[2] in (gpu_day.ROOT / gpu_day.TENSORRT_TESTS).read_text()


def test_the_page_about_gpus_lists_the_steps() -> None:
    page = (gpu_day.ROOT / "docs" / "gpu.md").read_text()
    rows = [f"| {step.name} | {step.limit_s:.0f} | {step.proves} |" for step in STEPS]
    assert sorted(rows, key=page.index) == rows


def test_a_machine_without_a_gpu_skips_all_steps_and_says_why(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    facts = look_around(tmp_path)
    assert facts["machine"]["python"] == sys.version.split()[0] and facts["workers"] <= (os.cpu_count() or 1)
    assert all("sees no GPU" in missing_for(step, facts) for step in STEPS)
    outcomes = run_day(STEPS, facts, tmp_path)
    assert {outcome.result for outcome in outcomes} == {"skipped"} and exit_code(outcomes) == 2


def test_a_driver_that_hangs_is_a_reason_to_skip_everything(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_day, "FACTS_S", 0.01)
    facts = look_around(tmp_path)
    assert "looking at this machine stopped (at its limit of 0 s)" in missing_for(STEPS[0], facts)


def test_a_question_that_fails_is_a_reason() -> None:
    def broken() -> str:
        raise OSError("no\nlibrary")

    assert (
        gpu_facts.answer(broken).startswith("OSError: no") and gpu_facts.answer(lambda: " two\nlines ") == "two lines"
    )
    assert gpu_facts.packages("json", "no_such_package")() == "no_such_package not installed"
