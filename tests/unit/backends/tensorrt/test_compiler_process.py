"""How the process that compiles an engine ends, and what is said then; small programs stand in for it."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable

import pytest

from opt_trt.backends.tensorrt import compiler_process
from opt_trt.backends.tensorrt.compile_rank import Job, later_error
from opt_trt.backends.tensorrt.compiler_process import Compiled, run_compiler
from opt_trt.errors import UserError

JOB = Job("c", None, 0, {}, "float32", None, [80], [], False, "plan", None, None, False, False)
NO_DRIVER = "catchCudaError (cudaError 35: CUDA driver version is insufficient)"


@pytest.fixture
def compile_by(monkeypatch) -> Callable[[str], Compiled]:
    """Return a function that runs a text of Python as if it were the builder."""

    def run(text: str) -> Compiled:
        program = "import json, os, sys\nsay = lambda **event: print(json.dumps(event), flush=True)\n"
        command = (sys.executable, "-c", program + textwrap.dedent(text))
        monkeypatch.setattr(compiler_process, "COMMAND", command)
        return run_compiler(JOB, talks=False)

    return run


def test_what_it_reports_is_kept(compile_by):
    compiled = compile_by("""
        assert json.load(sys.stdin)["target_sms"] == [80]
        say(network=["a", "b"]); say(log=["INFO", "Layers:\\none"]); say(done={"peak_bytes": 7})
    """)
    assert (compiled.network, compiled.messages, compiled.peak_bytes) == (["a", "b"], ["Layers:\none"], 7)


def test_a_long_silence_is_no_end_and_memory_is_watched_meanwhile(compile_by, monkeypatch, tmp_path):
    """The process ends when it has been watched: on a busy machine any fixed time may be too short."""
    watch, seen = compiler_process._anonymous_bytes, tmp_path / "seen"

    def watching(pid: int) -> int:
        found = watch(pid)
        if found > 1 << 20:
            seen.touch()
        return found

    monkeypatch.setattr(compiler_process, "_anonymous_bytes", watching)
    compiled = compile_by(f"""
        import time
        while not os.path.exists({str(seen)!r}): time.sleep(0.25)
        say(done={{'peak_bytes': 1}})
    """)
    assert compiled.is_done and compiled.anonymous_bytes > 1 << 20


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("say(refused='no such GPU')", "^no such GPU$"),
        (
            "os.abort()",
            r"^the TensorRT builder crashed \(SIGABRT\): it said nothing; --log_level verbose shows its log$",
        ),
        ("say(log=['ERROR', 'node 7\\n  is odd']); os.abort()", r"crashed \(SIGABRT\): node 7 is odd; "),
        ("print('Myelin: bad', file=sys.stderr, flush=True); os.abort()", r"crashed \(SIGABRT\): Myelin: bad; "),
        (
            "os.kill(os.getpid(), 9)",
            r"^the TensorRT builder was killed \(SIGKILL\), most likely because memory ran out",
        ),
        ("raise MemoryError", r"^the TensorRT builder ran out of memory \(MemoryError\); build where more is free$"),
    ],
)
def test_its_end_is_told_in_one_line(compile_by, text, says):
    with pytest.raises(UserError, match=says) as error:
        compile_by(text)
    assert "\n" not in str(error.value)


def test_an_error_of_the_system_arrives_as_one(compile_by):
    with pytest.raises(OSError, match="No space left on device: 'plan'"):
        compile_by("say(failed=[28, 'No space left on device', 'plan'])")


@pytest.mark.parametrize("text", ["[][1]", "pass"])
def test_a_bug_keeps_its_traceback_and_an_early_end_is_no_success(compile_by, text):
    with pytest.raises(RuntimeError, match=r"ended with code [01]:\n") as error:
        compile_by(text)
    assert ("IndexError" in str(error.value)) == (text == "[][1]")


def test_a_program_that_cannot_be_started_is_an_error(monkeypatch):
    monkeypatch.setattr(compiler_process, "COMMAND", ("/nowhere",))
    with pytest.raises(FileNotFoundError):
        run_compiler(JOB, talks=False)


def test_the_missing_driver_is_not_given_as_the_reason_of_another_error():
    assert later_error("bf16 on SM 75", NO_DRIVER) == "bf16 on SM 75"
    assert later_error("", NO_DRIVER) == NO_DRIVER
    assert later_error("first", "sec\n ond") == "sec ond"
