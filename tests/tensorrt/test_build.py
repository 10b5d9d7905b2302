"""`build.py --backend tensorrt` with the real builder: what it writes and prints, and how it ends when it is ended."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opt_trt.backends.tensorrt.compile_rank import configure
from opt_trt.backends.tensorrt.compiler_process import Compiled
from opt_trt.backends.tensorrt.library import load_library
from opt_trt.host.program import program_of
from tests._commands import run_command
from tests._processes import run, start_python
from tests.tensorrt.conftest import job_of

ENGINE_FILES = ["config.json", "rank0.engine", "tokenizer"]


@pytest.fixture
def build(checkpoints, tmp_path, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Return a function that builds an engine in `tmp_path / "engine"`; it returns exit code and output."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    limits = ("--max_batch_size", 8, "--max_seq_len", 128)

    def run(precision: str, *flags: object) -> tuple[int, str]:
        directories = ("--checkpoint_dir", checkpoints(precision), "--output_dir", tmp_path / "engine")
        return run_command("build", *directories, "--backend", "tensorrt", *limits, *flags)

    return run


@pytest.fixture
def at_compile(monkeypatch) -> Callable[[Callable[[int], None]], None]:
    """Return a function that lets another one act, on the builder's process id, as soon as the library compiles."""

    def let(act: Callable[[int], None]) -> None:
        take = Compiled.take

        def taking(self: Compiled, event: dict) -> None:
            take(self, event)
            if event.get("stage") == "compile":
                act(builders()[0])

        monkeypatch.setattr(Compiled, "take", taking)

    return let


def builders(parent: int | None = None) -> list[int]:
    """Return the ids of the running builders of a process, by default of this one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if words[0] != "Z" and int(words[1]) == (parent or os.getpid()) and b"tensorrt.compile_rank" in command:
            found.append(int(status.parent.name))
    return found


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in ("cache", "checkpoint"))


def test_the_builder_reads_packed_weights_whose_gpu_a_flag_names(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unnamed = shutil.copytree(checkpoints("int8"), tmp_path / "checkpoint")
    values = json.loads((unnamed / "config.json").read_text())
    del values["target_sm"]
    (unnamed / "config.json").write_text(json.dumps(values))
    words = (
        "--checkpoint_dir",
        unnamed,
        "--output_dir",
        tmp_path / "engine",
        "--backend",
        "tensorrt",
        "--target_sm",
        89,
    )
    assert "or give --packed_sm 80" in run_command("build", *words)[1]
    code, said = run_command("build", *words, "--packed_sm", 80, "--max_batch_size", 8, "--max_seq_len", 128)
    assert code == 0, said
    assert json.loads((tmp_path / "engine" / "config.json").read_text())["pretrained_config"]["target_sm"] == 80


def test_an_engine_says_what_it_is_and_what_it_runs_on(build, tmp_path):
    code, said = build(
        "int8", "--lm_head_precision", "int4", "--monitor_memory", "--visualize_network", tmp_path / "seen"
    )
    assert code == 0, said
    assert sorted(path.name for path in (tmp_path / "engine").iterdir()) == ENGINE_FILES
    config = json.loads((tmp_path / "engine" / "config.json").read_text())
    assert config["backend"] == "tensorrt" and config["build_config"]["lm_head_precision"] == "int4"
    assert config["device"] == {
        "type": "cuda", "library": "tensorrt_rtx", "version": load_library().__version__,
        "capabilities": "8.0 8.6 8.9 12.0 12.1",
    }  # fmt: skip
    assert config["build_config"]["max_batch_size"] == 8 and config["build_config"]["tokens_per_block"] == 128
    lines = said.splitlines()
    assert "never yet run on a GPU" in lines[0]
    assert [line.split()[1:3] for line in lines if line.startswith("generation ")] == [
        ["40", "9"]
    ]  # four layers, four kernels beside them
    run_command_line = f"{program_of('run')} --engine_dir {tmp_path / 'engine'}"  # as this process was started
    assert f"\nnext, on a GPU of compute capability 8.0, 8.6, 8.9, 12.0, 12.1: {run_command_line}" in said
    assert "note: " not in said and "memory of the build: " in said
    code, said = run_command("describe", tmp_path / "engine")
    assert "listed        no tensors: TensorRT alone reads those in its engines" in said.splitlines()
    assert code == 0 and f"backend tensorrt for cuda 8.0 8.6 8.9 12.0 12.1, {config['device']['library']} 1." in said
    network, kernels = ((tmp_path / "seen" / f"rank0.{what}.txt").read_text() for what in ("network", "kernels"))
    assert network.count("KV_CACHE_UPDATE") == 8
    assert kernels.count("_gemv_mha") >= 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_build_that_is_asked_to_end_ends_at_once_and_leaves_nothing(build, at_compile, tmp_path, number, code):
    at_compile(lambda _: os.kill(os.getpid(), number))
    assert build("fp16") == (code, "interrupted; nothing half-written was left\n")
    assert left(tmp_path) == [] and builders() == []


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (
            signal.SIGKILL,
            "error: the TensorRT builder was killed (SIGKILL), most likely because memory ran out; build ",
        ),
        (signal.SIGSEGV, "error: the TensorRT builder crashed (SIGSEGV): "),
    ],
)
def test_a_builder_that_dies_is_one_line_and_leaves_nothing(build, at_compile, tmp_path, number, says):
    at_compile(lambda pid: os.kill(pid, number))
    code, said = build("fp16")
    assert code == 2 and said.startswith(says) and said.count("\n") == 1
    assert left(tmp_path) == []


def test_the_builder_dies_with_the_command_even_if_that_is_killed(checkpoints, tmp_path):
    words = ("--checkpoint_dir", checkpoints("fp16"), "--output_dir", tmp_path / "engine", "--backend", "tensorrt")
    with start_python("build.py", *words) as command:
        found = waited(lambda: builders(command.pid))
        command.kill()
    waited(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))
    command.communicate()


def waited(ask: Callable[[], object], seconds: float = 120.0) -> object:
    """Return what a function returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return answer


def test_what_the_library_cannot_build_is_its_own_last_error(build, monkeypatch, tmp_path):
    monkeypatch.setattr("opt_trt.backends.tensorrt.engine_plan.TURING", 0)  # so that bf16 reaches the library
    code, said = build("bf16", "--target_sm", 75)
    assert code == 2 and said.startswith("error: TensorRT could not build rank 0: ") and "b16" in said
    assert said.count("\n") == 1 and left(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path) -> Iterator[tuple[Path, str]]:
    """Return a directory that takes no file of more than 4 MiB, and what the system says about a larger one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if run("mount", "-t", "tmpfs", "-o", "size=4m", "none", disk).returncode == 0:
        yield disk, "rank0.engine: No space left on device; 0.0"
        assert run("umount", disk).returncode == 0
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # mounting needs root
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))
    yield disk, "error: File too large ("
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_is_one_line_and_nothing_is_left(build, monkeypatch, small_disk):
    disk, says = small_disk
    monkeypatch.setattr("opt_trt.backends.tensorrt.build_engine.check_space", lambda *_: None)  # it was free before
    code, said = build("fp16", "--output_dir", disk / "engine")
    assert code == 2 and says in said and said.count("\n") == 1
    assert list(disk.iterdir()) == []


def test_an_engine_that_does_not_fit_the_disk_is_refused_before_it_is_built(build, monkeypatch):
    monkeypatch.setattr("opt_trt.host.disk.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    code, said = build("fp16")
    assert code == 2 and "/engine needs 0.01 GB, " in said and "free some space" in said


def test_a_file_cannot_take_the_lists_and_is_refused_before_anything_is_built(build, at_compile, tmp_path):
    at_compile(lambda pid: os.kill(pid, signal.SIGKILL))
    (tmp_path / "seen").write_text("mine")
    code, said = build("fp16", "--visualize_network", tmp_path / "seen")
    assert code == 2 and said == (
        f"error: --visualize_network {tmp_path / 'seen'} is a file; give the name of a directory\n"
    )
    assert left(tmp_path) == ["seen"]


def test_flags_reach_the_library(checkpoints, tmp_path):
    library = load_library()
    config = library.Builder(library.Logger(library.Logger.ERROR)).create_builder_config()
    job = job_of(
        checkpoints("fp16"), tmp_path, [89, 120], builder_flags=["WEIGHT_STREAMING", "SPARSE_WEIGHTS"], fast=True
    )
    configure(library, config, job)
    assert config.get_flag(library.BuilderFlag.WEIGHT_STREAMING) and config.get_flag(library.BuilderFlag.SPARSE_WEIGHTS)
    assert not config.get_flag(library.BuilderFlag.TF32)
    assert config.builder_optimization_level == 1
    targets = [config.get_compute_capability(place).name for place in range(config.num_compute_capabilities)]
    assert targets == ["SM89", "SM120"]
